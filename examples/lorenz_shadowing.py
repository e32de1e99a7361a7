"""Lorenz: the gradient of a long-time average, where ordinary adjoints explode.

The mean height <z> of Lorenz's attractor rises smoothly with the parameter rho, by about 1 for each unit. The gradient
of an average over a finite time, taken through the solver, has nothing to do with that: it grows exponentially with the
time. Least-squares shadowing (Wang, Hu & Blonigan 2014) compares with a trajectory that stays close instead.

    python examples/lorenz_shadowing.py --out runs/lorenz
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import INK, ROSE, STYLE, TEAL, out_dir, save
from torch import Tensor

import pydiffeqflux as pdf

SIGMA, BETA, DT = 10.0, 8 / 3, 0.02
START = torch.tensor([1.0, 1.0, 28.0], dtype=torch.float64)


def lorenz(rho: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    def field(t: Tensor, state: Tensor) -> Tensor:
        x, y, z = state.unbind(-1)
        return torch.stack([SIGMA * (y - x), x * (rho - z) - y, x * y - BETA * z], -1)

    return field


def height(state: Tensor) -> Tensor:
    return state[..., 2]


@dataclass
class Outcome:
    rhos: list[float]
    averages: list[float]
    slopes: list[float]
    #: Averaging times, and the size of the gradient taken through the solver.
    times: list[float]
    ordinary: list[float]
    picture: Path


def shadowed(rho: float, span: float) -> tuple[float, float]:
    parameter = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
    problem = pdf.ODEProblem(lorenz(parameter), START, (0.0, span))
    mean = pdf.shadowing_average(problem, height, dt=DT, transient=10.0)
    mean.backward()
    return mean.item(), parameter.grad.item()


def through_the_solver(rho: float, span: float) -> float:
    parameter = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
    saves = torch.linspace(0, span, round(span / DT) + 1, dtype=torch.float64)
    path = pdf.solve(pdf.ODEProblem(lorenz(parameter), START, (0.0, span)), "rk4", saveat=saves, dense=False).ys
    height(path).mean().backward()
    return abs(parameter.grad.item())


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Average (over less when ``quick``), draw ``lorenz_shadowing.png`` into ``out_dir``."""
    rhos = [26.0, 34.0] if quick else [26.0, 28.0, 30.0, 32.0, 34.0, 36.0]
    found = [shadowed(rho, 30.0 if quick else 110.0) for rho in rhos]
    times = [2.0, 10.0] if quick else [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 25.0, 30.0]
    ordinary = [through_the_solver(28.0, span) for span in times]
    outcome = Outcome(
        rhos, [m for m, _ in found], [s for _, s in found], times, ordinary, Path(out_dir) / "lorenz_shadowing.png"
    )
    draw(outcome)
    return outcome


def draw(outcome: Outcome) -> None:
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
        for rho, mean, slope in zip(outcome.rhos, outcome.averages, outcome.slopes, strict=True):
            left.plot([rho - 0.8, rho + 0.8], [mean - 0.8 * slope, mean + 0.8 * slope], color=ROSE, lw=2.5)
        left.plot(outcome.rhos, outcome.averages, "o", color=INK, ms=6)
        left.set(xlabel="rho", title="Mean height, and its slope by shadowing")
        right.semilogy(outcome.times, outcome.ordinary, "o-", color=TEAL, lw=1.6, label="through the solver")
        right.axhline(outcome.slopes[len(outcome.slopes) // 2], color=ROSE, lw=2, label="by shadowing")
        right.set(xlabel="averaging time", title="Size of the gradient in rho")
        right.legend(frameon=False)
        save(fig, outcome.picture)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    for rho, mean, slope in zip(outcome.rhos, outcome.averages, outcome.slopes, strict=True):
        print(f"rho = {rho:g}: <z> = {mean:.3f}, d<z>/d rho = {slope:.3f}")
    print(f"through the solver, after t = {outcome.times[-1]:g}: {outcome.ordinary[-1]:.3g}; wrote {outcome.picture}")
