"""Julia from other threads and processes, and from notebooks; and what stays in memory."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import nbclient
import nbformat
import pytest
import torch
from problems.in_julia import juliacalls
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import pydiffeqflux as pdf
from pydiffeqflux.errors import JuliaForkError

pytestmark = pytest.mark.julia

D = torch.float64


def decay(rate: Tensor, n: int = 1) -> pdf.ODEProblem:
    return pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(n, dtype=D), (0.0, 1.0))


def slope(at: float) -> float:
    """The derivative of the decay's end, solved and differentiated by Julia."""
    rate = torch.tensor(at, dtype=D, requires_grad=True)
    sol = pdf.solve(decay(rate), saveat=[1.0], backend="julia", rtol=1e-9, atol=1e-9)
    (found,) = torch.autograd.grad(sol.ys.sum(), rate)
    return float(found)


def expected(at: float) -> Any:
    return pytest.approx(-float(torch.exp(torch.tensor(-at))), abs=1e-6)


def test_backward_on_another_thread_than_forward() -> None:
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    loss = pdf.solve(decay(rate), saveat=[1.0], backend="julia", rtol=1e-9, atol=1e-9).ys.sum()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join(300)
    assert rate.grad is not None and float(rate.grad) == expected(0.5)


class Trajectories(Dataset[Tensor]):
    """Data that Julia makes, in the worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        rate = torch.tensor(0.5 + index, dtype=D)
        return pdf.solve(decay(rate), saveat=[1.0], backend="julia", rtol=1e-9, atol=1e-9).ys[-1]


@pytest.mark.slow
def test_workers_of_a_data_loader_that_are_spawned() -> None:
    loader = DataLoader(Trajectories(), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    found = torch.cat(list(loader))
    assert torch.allclose(found[:, 0], torch.exp(-torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=D)), atol=1e-7)


def test_workers_of_a_data_loader_that_are_forked() -> None:
    slope(0.5)  # Julia runs
    loader = DataLoader(Trajectories(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(JuliaForkError, match="multiprocessing_context='spawn' for a DataLoader"):
        list(loader)
    assert slope(0.5) == expected(0.5)


# -- notebooks ------------------------------------------------------------------------------------

CELLS = [
    "import torch, pydiffeqflux as pdf",
    "rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)\n"
    "problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1, dtype=torch.float64), (0.0, 1.0))\n"
    "sol = pdf.solve(problem, saveat=[1.0], backend='julia', rtol=1e-9, atol=1e-9, progress=True)",
    "sol.ys.sum().backward(); print(round(float(rate.grad), 6))",
]


@pytest.mark.parametrize("first", ["pass", pytest.param("import juliacall", marks=pytest.mark.slow)])
def test_in_a_notebook(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something of Julia's runs after every cell where the kernel knows juliacall."""
    for name, value in juliacalls().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in [first, *CELLS]])
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert notebook.cells[-1].outputs[-1]["text"].strip() == "-0.606531"


# -- memory ---------------------------------------------------------------------------------------


def resident() -> float:
    """Megabytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(warm: int, count: int) -> float:
    rate = torch.tensor(0.5, dtype=D, requires_grad=True)
    problem = decay(rate, 4)

    def some(count: int) -> None:
        for _ in range(count):
            pdf.solve(problem, saveat=[0.5, 1.0], backend="julia", dense=False).ys.sum().backward()

    some(warm)
    before = resident()
    some(count)
    return resident() - before


def held() -> int:
    """Things that Julia keeps for Python."""
    from pydiffeqflux.backends.julia.session import session

    gc.collect()  # a model and its function may refer to each other
    return int(session().call("bridge_held"))


def test_what_julia_holds_is_let_go() -> None:
    growth(20, 20)
    before = held()
    growth(0, 300)
    assert held() <= before + 2


def test_models_that_nobody_uses_are_let_go() -> None:
    def once() -> None:
        weight = torch.randn(2, 2, dtype=D, requires_grad=True)
        problem = pdf.ODEProblem(lambda t, y: y @ weight, torch.ones(2, dtype=D), (0.0, 1.0))
        pdf.solve(problem, saveat=[1.0], backend="julia").ys.sum().backward()

    for _ in range(34):  # more than are remembered
        once()
    before = held()
    for _ in range(5):
        once()
    assert held() <= before + 2


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_solves() -> None:
    assert growth(2000, 8000) < 30
