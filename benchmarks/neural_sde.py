"""Neural SDEs and their Brownian paths, side by side with torchsde.

Two tables, both with one thread and in shuffled, interleaved rounds; times are medians of the process's CPU time, and
ratios medians over rounds of the ratio within a round.

* One increment of a Brownian path along 1000 (not a power of two) and 1024 equal steps. ``Tree`` is this package's,
  a function of seed and time alone; torchsde's ``BrownianInterval`` is that with ``halfway_tree=True`` only, and
  otherwise one of the order of the questions too.
* One solve, and one solve with its gradient, of a neural SDE (2-32-2 tanh drift and diffusion, batch 64, float32,
  64 steps of a size without rounding errors), ``sdeint`` and ``sdeint_adjoint`` of both packages on torchsde's path.

    pip install -c constraints.txt -e .
    python benchmarks/neural_sde.py
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torchsde
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends.common.tree import DEPTH, Tree

Job = Callable[[], object]


class NeuralSDE(nn.Module):
    def __init__(self, noise: str, kind: str):
        super().__init__()
        self.noise_type, self.sde_type, self.m = noise, kind, 3
        width = 2 if noise == "diagonal" else 2 * self.m
        self.drift = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        self.diffusion = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, width), nn.Sigmoid())

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        g = self.diffusion(y)
        return g if self.noise_type == "diagonal" else g.view(-1, 2, self.m)


def race(everyone: dict[str, Job], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every contender in every round; one round before the first is not counted."""
    times: dict[str, list[float]] = {name: [] for name in everyone}
    for number in range(rounds + 1):
        for name in random.sample(list(everyone), len(everyone)):
            began = time.process_time()
            everyone[name]()
            if number:
                times[name].append(time.process_time() - began)
    return times


def paths(n: int, size: tuple[int, int]) -> dict[str, Job]:
    """Fresh paths, asked for ``n`` equal steps one after the other."""
    options = {"size": size, "dtype": torch.float32, "entropy": 1}
    tol = 2.0**-DEPTH
    motions: dict[str, Callable[[], Callable[..., object]]] = {
        "Tree": lambda: Tree(1, 0.0, 1.0, size, torch.float32, torch.device("cpu")),
        "BrownianInterval": lambda: torchsde.BrownianInterval(0.0, 1.0, **options),
        "BrownianInterval, dt given": lambda: torchsde.BrownianInterval(0.0, 1.0, dt=1 / n, **options),
        "BrownianInterval, halfway_tree": lambda: torchsde.BrownianInterval(
            0.0, 1.0, halfway_tree=True, tol=tol, **options
        ),
    }

    def walk(make: Callable[[], Callable[..., object]]) -> Job:
        def job() -> None:
            motion = make()
            for i in range(n):
                motion(i / n, (i + 1) / n)

        return job

    return {name: walk(make) for name, make in motions.items()}


def solves(noise: str, kind: str, method: str, adjoint: bool, gradient: bool) -> dict[str, Job]:
    torch.manual_seed(0)
    sde, y0 = NeuralSDE(noise, kind), torch.randn(64, 2)
    name = "sdeint_adjoint" if adjoint else "sdeint"

    def run(package: object) -> Job:
        def job() -> None:
            with torch.set_grad_enabled(gradient):
                ys = getattr(package, name)(sde, y0, [0.0, 1.0], method=method, dt=1 / 64)
            if gradient:
                ys[-1].square().sum().backward()

        return job

    return {"pydiffeqflux": run(pdf), "torchsde": run(torchsde)}


CASES = [
    ("diagonal", "ito", "euler"),
    ("diagonal", "ito", "milstein"),
    ("diagonal", "ito", "srk"),
    ("general", "stratonovich", "midpoint"),
    ("general", "stratonovich", "reversible_heun"),
]
MODES = [("solve", False, False), ("sdeint + backward", False, True), ("sdeint_adjoint + backward", True, True)]


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args(argv).rounds
    torch.set_num_threads(1)
    random.seed(0)
    console = Console()
    table = Table("path", "steps", "microseconds a step", "of Tree's", title="One increment of shape (64, 2)")
    for n in (1000, 1024):
        times = race(paths(n, (64, 2)), max(rounds // 3, 2))
        for name, found in times.items():
            row = (f"{statistics.median(found) / n * 1e6:.0f}", f"{ratio(found, times['Tree']):.1f}")
            table.add_row(name, str(n), *row)
    console.print(table)
    table = Table("noise", "method", "what", "ours, ms", "torchsde, ms", "faster by", title="64 steps of a neural SDE")
    for noise, kind, method in CASES:
        for what, adjoint, gradient in MODES:
            times = race(solves(noise, kind, method, adjoint, gradient), rounds)
            ours, theirs = times["pydiffeqflux"], times["torchsde"]
            milliseconds = [f"{1e3 * statistics.median(x):.0f}" for x in (ours, theirs)]
            table.add_row(f"{noise}, {kind}", method, what, *milliseconds, f"{ratio(theirs, ours):.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
