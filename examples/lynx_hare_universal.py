"""Lynx and hare: a universal differential equation on a century-old series.

Births of hares and deaths of lynx are taken as known up to their rates, h' = a h - ..., l' = ... - d l; what happens
when they meet is left to a network of both, and everything is fitted to twenty years of pelts: rates and network
together. Rackauckas et al., "Universal differential equations for scientific machine learning" (2020). The fit goes
through collocation (no solve at all), multiple shooting, and one trajectory.

    python examples/lynx_hare_universal.py --out runs/lynx_hare
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import STYLE, descend, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.training import read_csv

DATA = Path(__file__).parents[1] / "data" / "lynx_hare.csv"
HARE, LYNX, INK = "#0b7a75", "#d1495b", "#1d3557"


class Rates(nn.Module):
    """Births of hares and deaths of lynx, in the logarithms of both: two numbers that are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.log(torch.tensor([0.5, 0.8], dtype=torch.float64)))

    def forward(self, y: Tensor) -> Tensor:
        births, deaths = self.logs.exp()
        return torch.stack([births, -deaths]).expand(y.shape)


class Encounters(nn.Module):
    """What meeting costs the hares and feeds the lynx, a head: networks of both numbers, of the sign that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, y: Tensor) -> Tensor:
        sign = torch.tensor([-1.0, 1.0], dtype=y.dtype)
        return sign * nn.functional.softplus(self.net(y))


@dataclass
class Outcome:
    losses: list[float]
    births: float
    deaths: float
    #: Root mean square error of the logarithms along the single trajectory, and the spread of the data's.
    error: float
    spread: float
    picture: Path


def shoot(ude: pdf.UniversalODE, data: Tensor, times: Tensor, iterations: int) -> list[float]:
    def loss() -> Tensor:
        return pdf.multiple_shoot(ude, data, times, None, "rk4", 6, continuity_term=1.0, dt=0.25).loss

    return descend(ude.parameters(), loss, iterations, 0.03)


def follow(ude: pdf.UniversalODE, start: nn.Parameter, data: Tensor, iterations: int) -> list[float]:
    """One trajectory, from a start that is fitted too."""
    optimiser = torch.optim.LBFGS([*ude.parameters(), start], max_iter=iterations, line_search_fn="strong_wolfe")
    losses: list[float] = []

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (ude(start) - data).square().sum()
        value.backward()
        losses.append(value.item())
        return value

    optimiser.step(loss)
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Fit (fewer iterations when ``quick``), draw ``lynx_hare_universal.png`` into ``out_dir``."""
    torch.manual_seed(1)
    series = read_csv(DATA, "Year", ["Hare", "Lynx"])
    times = torch.as_tensor(series.times - series.times[0])
    data = torch.as_tensor(series.values).log()
    middle = data.mean(0)
    y = data - middle  # the network's inputs, centred
    ude = pdf.UniversalODE(Rates(), Encounters(), (0.0, float(times[-1])), "rk4", dt=0.25, saveat=times)
    losses = pdf.collocation_pretrain(ude, y, times, "epanechnikov", 0.2, steps=100 if quick else 300)
    losses = shoot(ude, y, times, 40 if quick else 400)
    start = nn.Parameter(y[0].clone())
    losses += follow(ude, start, y, 20 if quick else 200)
    with torch.no_grad():
        fine = torch.linspace(0, float(times[-1]), 401, dtype=torch.float64)
        smooth = pdf.solve(pdf.ODEProblem(ude.rhs, start, (0.0, float(times[-1]))), "tsit5", saveat=fine).ys
        births, deaths = ude.known.logs.exp().tolist()
        error = float((ude(start) - y).square().mean().sqrt())
    picture = Path(out_dir) / "lynx_hare_universal.png"
    draw(picture, series, fine, (smooth + middle).exp(), ude, middle, losses)
    return Outcome(losses, births, deaths, error, float(y.square().mean().sqrt()), picture)


def draw(
    path: Path, series: object, fine: Tensor, fitted: Tensor, ude: pdf.UniversalODE, middle: Tensor, losses: list[float]
) -> None:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained", width_ratios=(1.7, 1, 0.8))
        for i, (name, colour) in enumerate((("hare", HARE), ("lynx", LYNX))):
            axes[0].plot(series.times[0] + fine, fitted[:, i], color=colour, lw=2, label=name)
            axes[0].plot(series.times, series.values[:, i], "o", color=colour, ms=5, mec="white")
        axes[0].set(title="Pelts, in thousands", xticks=range(1900, 1921, 5))
        axes[0].legend(frameon=False, ncols=2)
        many = torch.linspace(4, 60, 60, dtype=torch.float64)
        for hares, style in ((20.0, "-"), (50.0, "--")):
            at = torch.stack([torch.full_like(many, hares), many], -1).log() - middle
            with torch.no_grad():
                loss = -ude.network(at)[:, 0]
            axes[1].plot(many, loss, color=HARE, ls=style, label=f"hares lost a head, at {hares:.0f} thousand")
        for lynx, style in ((10.0, "-"), (40.0, "--")):
            at = torch.stack([many, torch.full_like(many, lynx)], -1).log() - middle
            with torch.no_grad():
                gain = ude.network(at)[:, 1]
            axes[1].plot(many, gain, color=LYNX, ls=style, label=f"lynx gained a head, at {lynx:.0f} thousand")
        axes[1].set(title="What the network found", xlabel="thousands of the other")
        axes[1].legend(frameon=False, fontsize=7.5)
        axes[2].semilogy(losses, color=INK, lw=1.2)
        axes[2].set(title="Loss", xlabel="evaluation")
        save(fig, path)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"births {outcome.births:.3f} a year, deaths {outcome.deaths:.3f} a year")
    print(f"logarithms off by {outcome.error:.3f} (spread {outcome.spread:.3f}); wrote {outcome.picture}")
