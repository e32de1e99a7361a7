"""Training under DistributedDataParallel, in two real processes that talk to each other over gloo."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import pydiffeqflux as pdf

WORLD, ROWS, STEPS = 2, 8, 3
D = torch.float64

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no torch.distributed with gloo"
)


def model(sensealg: str | None) -> nn.Module:
    """A neural ODE between two layers; the same numbers in every process."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    # Fixed steps: adaptive ones depend on the whole batch, of which each process has a part.
    node = pdf.NeuralODE(net, (0.0, 1.0), "rk4", dt=0.1, sensealg=sensealg)
    return nn.Sequential(node, nn.Linear(2, 1)).to(D)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 2, dtype=D, generator=torch.Generator().manual_seed(1))
    return x, x.prod(1, keepdim=True)


def train(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """A few steps; the gradients of each, and the parameters at the end."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    gradients = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        (module(x) - y).square().mean().backward()
        gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
        optimizer.step()
    return {"gradients": gradients, "parameters": [p.detach().clone() for p in module.parameters()]}


def process(rank: int, port: int, sensealg: str | None, folder: str) -> None:
    """What each of the two processes does: half of the rows, gradients averaged by DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    try:
        x, y = data()
        mine = slice(rank * ROWS // WORLD, (rank + 1) * ROWS // WORLD)
        module = nn.parallel.DistributedDataParallel(model(sensealg))
        torch.save(train(module, x[mine], y[mine]), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("sensealg", [None, "GaussAdjoint"])
def test_two_processes_train_as_one_does_on_both_halves(sensealg: str | None, tmp_path: Path) -> None:
    mp.start_processes(process, (free_port(), sensealg, str(tmp_path)), nprocs=WORLD, start_method="spawn")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    expected = train(model(sensealg), *data())
    assert not torch.equal(expected["parameters"][0], next(model(sensealg).parameters()))  # it has moved
    for one in found:
        for step in range(STEPS):
            for a, b in zip(one["gradients"][step], expected["gradients"][step], strict=True):
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
        for a, b in zip(one["parameters"], expected["parameters"], strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(*(one["parameters"] for one in found), strict=True):
        assert torch.equal(a, b)
