"""Right-hand sides put together at random: programs, machine code and whole solves agree with torch to rounding.

Most graphs' programs are run by Python, which takes no compiler's time; some are compiled, in both precisions, and some
are solved with their gradients. ``pytest -m slow tests/test_random_graphs.py`` takes thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from problems.random_graphs import Graph, random_graph
from problems.spoken import speak
from test_graph import run
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import UntraceableError
from pydiffeqflux.graph import kernels

D, S = torch.float64, torch.float32
#: Relative to the largest entry, and by what operators such as differences of large numbers lose.
ROUNDING = {D: 1e-9, S: 1e-3}
Speak = Callable[..., dict[str, np.ndarray]]


def differences(graph: Graph, speaker: Speak, jacobian: bool) -> Iterator[str]:
    """What the programs of a graph say otherwise than torch does."""
    y0, dtype = graph.y0, graph.y0.dtype
    when = torch.tensor(0.37, dtype=dtype)
    traced = kernels(graph, when, y0)
    t, y, v = when.clone().requires_grad_(), y0.clone().requires_grad_(), torch.randn_like(y0)
    params = traced.graphs.externals[: traced.graphs.params]
    out = graph(t, y)
    to_t, to_y, *to_params = torch.autograd.grad(out, [t, y, *params], v, allow_unused=True)
    spoken = {"f": speaker(traced, "f", when, y0)["out"]}
    pulled = speaker(traced, "vjp", when, y0, v)
    spoken |= {"v df/dt": pulled["gt"], "v df/dy": pulled["gy"], "v df/dp": pulled["gp"]}
    spoken["v df/dy alone"] = speaker(traced, "vjp_y", when, y0, v)["gy"]
    expected: dict[str, Tensor | None] = {"f": out, "v df/dt": to_t, "v df/dy": to_y, "v df/dy alone": to_y}
    pieces = [torch.zeros_like(p) if g is None else g for p, g in zip(params, to_params, strict=True)]
    expected["v df/dp"] = torch.cat([g.reshape(-1) for g in pieces]) if pieces else torch.zeros(0, dtype=dtype)
    if jacobian:
        spoken["df/dy"] = speaker(traced, "jac", when, y0)["J"]
        expected["df/dy"] = torch.autograd.functional.jacobian(lambda x: graph(when, x), y0)
    for name, got in spoken.items():
        found = expected[name]
        want = np.zeros_like(got) if found is None else found.detach().reshape(-1).numpy()
        tol = ROUNDING[dtype]
        if not np.allclose(got, want, rtol=tol, atol=tol * max(1.0, float(np.abs(want).max(initial=0.0)))):
            yield f"{name}: {got} is not {want}"


def check(seeds: range, dtype: torch.dtype = D, speaker: Speak = speak) -> None:
    """Hold the graphs of these seeds against torch; few of them may use what has no translation."""
    refused: list[str] = []
    for seed in seeds:
        graph = random_graph(seed, dtype)
        try:
            wrong = list(differences(graph, speaker, jacobian=seed % 4 == 0))
        except UntraceableError as why:
            refused.append(f"seed {seed}: {why}")
            continue
        assert not wrong, f"seed {seed}: {wrong}\n{graph}"
    assert len(refused) <= 0.05 * len(seeds), "\n".join(refused)


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_programs(first: int) -> None:
    check(range(first, first + 50))


@pytest.mark.parametrize("dtype", [D, S], ids=str)
def test_machine_code(dtype: torch.dtype) -> None:
    check(range(1000, 1006), dtype, run)


def solve_both(seed: int, dtype: torch.dtype = D, **options: Any) -> None:
    """One solve by each engine, and the gradients by everything that there is."""
    graph = random_graph(seed, dtype)
    found = []
    for backend in ("eager", "compiled"):
        y0 = graph.y0.clone().requires_grad_()
        problem = pdf.ODEProblem(graph, y0, (0.1, 1.3))
        tol = 1e-6 if dtype == D else 1e-3
        sol = pdf.solve(
            problem, saveat=[0.1, 0.5, 0.9, 1.3], rtol=tol, atol=tol, dense=False, backend=backend, **options
        )
        weights = torch.cos(torch.arange(sol.ys.numel(), dtype=dtype)).view_as(sol.ys)
        wanted = [y0, *graph.params]
        found.append((sol, torch.autograd.grad((sol.ys * weights).sum(), wanted, allow_unused=True)))
    (theirs, expected), (ours, grads) = found
    assert ours.stats.backend == "compiled"
    if dtype == S and ours.stats.naccept != theirs.stats.naccept:
        return  # a step at the edge of its tolerance: other steps, other rounding
    assert (ours.stats.naccept, ours.stats.nreject) == (theirs.stats.naccept, theirs.stats.nreject), str(graph)
    close = {"rtol": 1e-6, "atol": 1e-8} if dtype == D else {"rtol": 2e-2, "atol": 2e-3}
    if dtype == D and theirs.stats.nreject > 3:
        # At a kink an error estimate is a difference of large numbers: the sizes of the steps amplify rounding.
        close = {"rtol": 1e-4, "atol": 1e-6}
        solve_both(seed, method="rk4", dt=0.05)
    torch.testing.assert_close(ours.ys, theirs.ys, **close, msg=lambda m: f"seed {seed}: {m}\n{graph}")
    for got, want, x in zip(grads, expected, wanted, strict=True):
        got, want = (torch.zeros_like(x) if g is None else g for g in (got, want))
        torch.testing.assert_close(got, want, **close, msg=lambda m: f"seed {seed}: {m}\n{graph}")


@pytest.mark.parametrize("seed", range(2000, 2006))
def test_whole_solves(seed: int) -> None:
    solve_both(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 13_000, 250))
def test_thousands_of_programs(first: int) -> None:
    check(range(first, first + 250))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [D, S], ids=str)
def test_more_machine_code(dtype: torch.dtype) -> None:
    check(range(20_000, 20_100), dtype, run)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(30_000, 30_100, 20))
def test_more_whole_solves(first: int) -> None:
    for seed in range(first, first + 20):
        method = ("tsit5", "dopri8", "bosh3", "vern7", "rk4")[seed % 5]
        solve_both(seed, method=method, **({"dt": 0.05} if method == "rk4" else {}))
