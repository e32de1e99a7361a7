"""Collocation: rates of change from noisy data, and a neural ODE trained on them before it is ever solved.

Kernel regression estimates the state and its rate at each datum; a network is regressed onto these rates, which costs
one evaluation a step. Training through the solver then starts where most of the work is done. Roesch, Rackauckas &
Stumpf, "Collocation based training of neural ordinary differential equations" (2021); DiffEqFlux.jl's tutorial.

    python examples/collocation_pretraining.py --out runs/collocation
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GREY, INK, ROSE, STYLE, TEAL, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

END = 1.5
TIMES = torch.linspace(0.0, END, 200)
START = torch.tensor([2.0, 0.0])
TRUTH = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
KERNEL, WIDTH = "tricube", 0.08


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ TRUTH


def node() -> pdf.NeuralODE:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
    return pdf.NeuralODE(net, (0.0, END), "rk4", saveat=TIMES[::2], dt=2 * float(TIMES[1]), dense=False)


@dataclass
class Outcome:
    #: Mean squared errors against the truth: after collocation alone, after both, and after as many steps without it.
    collocated: float
    both: float
    without: float
    #: Root mean square error of the estimated rates, relative to their size.
    rates: float
    picture: Path


def train(layer: pdf.NeuralODE, data: Tensor, iterations: int) -> list[float]:
    optimiser = torch.optim.Adam(layer.parameters(), lr=3e-3)
    losses = []
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = (layer(START) - data[::2]).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``collocation_pretraining.png`` into ``out_dir``."""
    torch.manual_seed(3)
    truth = pdf.solve(pdf.ODEProblem(spiral, START, (0.0, END)), "vern7", saveat=TIMES, rtol=1e-7, atol=1e-7).ys
    data = truth + 0.1 * torch.randn_like(truth)
    du, u = pdf.collocate_data(data, TIMES, KERNEL, WIDTH)
    exact = spiral(TIMES, truth)
    first, plain = node(), node()
    pdf.collocation_pretrain(first, data, TIMES, KERNEL, WIDTH, steps=200 if quick else 800)
    with torch.no_grad():
        collocated = first(START)
    iterations = 10 if quick else 80
    losses = train(first, data, iterations), train(plain, data, iterations)
    with torch.no_grad():
        both, without = first(START), plain(START)
    error = lambda path: float((path - truth[::2]).square().mean())  # noqa: E731
    picture = Path(out_dir) / "collocation_pretraining.png"
    draw(picture, data, (du, u, exact), (collocated, both, without), losses)
    rates = float((du - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    return Outcome(error(collocated), error(both), error(without), rates, picture)


def draw(
    path: Path,
    data: Tensor,
    estimates: tuple[Tensor, Tensor, Tensor],
    paths: tuple[Tensor, Tensor, Tensor],
    losses: tuple[list[float], list[float]],
) -> None:
    du, u, exact = estimates
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(2, 2, figsize=(11.5, 6.6), layout="constrained")
        (states, fits), (rates, curve) = axes
        states.plot(TIMES, data, ".", color=GREY, ms=3)
        states.plot(TIMES, u, color=TEAL, lw=1.8)
        states.set_title("Noisy states (dots), smoothed", loc="left")
        rates.plot(TIMES, exact, color=INK, lw=1.2, ls="--")
        rates.plot(TIMES, du, color=TEAL, lw=1.8)
        rates.set(xlabel="t")
        rates.set_title("Their rates: estimated, and true (dashed)", loc="left")
        fits.plot(TIMES, data[:, 0], ".", color=GREY, ms=3)
        names = ("collocation alone", "then through the solver", "through the solver alone")
        for found, name, colour, dash in zip(paths, names, (TEAL, INK, ROSE), ("--", "-", "-"), strict=True):
            fits.plot(TIMES[::2], found[:, 0], color=colour, ls=dash, lw=1.6, label=name)
        fits.legend(frameon=False, loc="upper center", ncols=3, fontsize=8)
        fits.set_ylim(-2.2, 3.0)
        fits.set_title("One solve from the first datum", loc="left")
        curve.semilogy(losses[0], color=INK, lw=1.6, label="after collocation")
        curve.semilogy(losses[1], color=ROSE, lw=1.6, label="from scratch")
        curve.axhline(0.01, color=GREY, lw=1, ls="--")
        curve.legend(frameon=False)
        curve.set(xlabel="iteration through the solver")
        curve.set_title("Loss; dashed: the noise", loc="left")
        save(fig, path)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"rates estimated to {outcome.rates:.1%}")
    print(
        f"squared error after collocation {outcome.collocated:.4f}, then the solver {outcome.both:.4f},"
        f" the solver alone {outcome.without:.4f}; wrote {outcome.picture}"
    )
