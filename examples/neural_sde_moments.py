"""A neural SDE fitted by moments: only the mean and the variance of a noisy spiral are known, not its paths.

The truth is dy = y^3 A dt + 0.2 y dW. Drift and diffusion are networks; every iteration solves for a new batch of
paths, and the loss compares the batch's mean and variance at thirty times with those of the data.
The example of DiffEqFlux.jl's tutorial on neural SDEs.

    python examples/neural_sde_moments.py --out runs/neural_sde
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GREY, INK, ROSE, STYLE, TEAL, out_dir, save
from matplotlib.axes import Axes
from torch import Tensor, nn

import pydiffeqflux as pdf

TRUTH = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
VOLATILITY = 0.2
START = torch.tensor([2.0, 0.0])
TIMES = torch.linspace(0.0, 1.0, 30)
SPAN = (0.0, 1.0)


class Cubed(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y**3


@dataclass
class Moments:
    """Mean and variance at every time, ``(T, 2)`` each."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, ys: Tensor) -> Moments:
        return cls(ys.mean(1), ys.var(1))

    def distance(self, other: Moments) -> Tensor:
        """The sum of squares that is trained on."""
        return (self.mean - other.mean).square().sum() + 2 * (self.variance - other.variance).square().sum()


@dataclass
class Outcome:
    losses: list[float]
    data: Moments
    before: Moments
    fitted: Moments
    picture: Path


@torch.no_grad()
def measured(paths: int) -> tuple[Moments, Tensor]:
    """The data: moments of many paths of the truth; and the paths, of which the fit sees nothing."""
    problem = pdf.SDEProblem(
        lambda t, y: y**3 @ TRUTH, lambda t, y: VOLATILITY * y, START.expand(paths, 2), SPAN, seed=1
    )
    sol = pdf.solve(problem, pdf.SRIW1(adaptive=False), dt=1 / 128, saveat=TIMES, dense=False)
    return Moments.of(sol.ys), sol.ys


def layer() -> pdf.NeuralDSDE:
    drift = nn.Sequential(Cubed(), nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
    diffusion = nn.Linear(2, 2)
    nn.init.zeros_(diffusion.bias)
    nn.init.normal_(diffusion.weight, std=0.02)
    return pdf.NeuralDSDE(drift, diffusion, SPAN, "sosri", saveat=TIMES, rtol=0.1, atol=0.1)


def train(model: pdf.NeuralDSDE, data: Moments, iterations: int, paths: int) -> list[float]:
    optimiser = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.05, total_steps=iterations)
    losses = []
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = Moments.of(model(START.expand(paths, 2))).distance(data)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations and paths when ``quick``), draw ``neural_sde_moments.png`` into ``out_dir``."""
    torch.manual_seed(0)
    data, truth = measured(2000 if quick else 10_000)
    model = layer()
    many = START.expand(1000 if quick else 4000, 2)
    with torch.no_grad():
        before = Moments.of(model(many))
    losses = train(model, data, iterations=60 if quick else 600, paths=64 if quick else 200)
    with torch.no_grad():
        paths = model(many)
    picture = Path(out_dir) / "neural_sde_moments.png"
    fitted = Moments.of(paths)
    draw(picture, data, fitted, truth, paths, losses)
    return Outcome(losses, data, before, fitted, picture)


def draw(path: Path, data: Moments, fitted: Moments, truth: Tensor, paths: Tensor, losses: list[float]) -> None:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(11.5, 6.2), layout="constrained")
        axes = fig.subplot_mosaic("AB;AC;DC", width_ratios=(1.1, 1), height_ratios=(1, 0.9, 0.75))
        phase_plane(axes["A"], data, truth, paths)
        means(axes["B"], data, fitted)
        variances(axes["C"], data, fitted)
        loss_curve(axes["D"], losses)
        save(fig, path)


def phase_plane(ax: Axes, data: Moments, truth: Tensor, paths: Tensor, shown: int = 12) -> None:
    for ys, colour in ((truth, GREY), (paths, ROSE)):
        for k in range(shown):
            ax.plot(ys[:, k, 0], ys[:, k, 1], color=colour, lw=0.9, alpha=0.75)
    ax.plot([], [], color=GREY, label="paths of the truth (not seen)")
    ax.plot([], [], color=ROSE, label="paths of the neural SDE")
    ax.plot(data.mean[:, 0], data.mean[:, 1], "o", color=INK, ms=5, mec="white", mew=0.7, label="data: the mean")
    ax.set(xlabel="$y_1$", ylabel="$y_2$", xlim=(-2.9, 2.9), ylim=(-2.6, 2.6))
    ax.set_title("Paths", loc="left")
    ax.legend(loc="center", bbox_to_anchor=(0.47, 0.54), framealpha=1.0, edgecolor="none", fontsize=9)


def means(ax: Axes, data: Moments, fitted: Moments) -> None:
    for i, colour in enumerate((TEAL, ROSE)):
        spread = fitted.variance[:, i].sqrt()
        ax.fill_between(TIMES, fitted.mean[:, i] - spread, fitted.mean[:, i] + spread, color=colour, alpha=0.15, lw=0)
        ax.plot(TIMES, fitted.mean[:, i], color=colour, lw=2)
        ax.plot(TIMES, data.mean[:, i], "o", color=colour, ms=4.5, mec="white", mew=0.7)
        place = {"xytext": (5, -3), "textcoords": "offset points"}
        ax.annotate(f"$y_{i + 1}$", (1.0, float(fitted.mean[-1, i])), color=colour, **place)
    ax.set(xlim=(0, 1.06))
    ax.set_title("Mean: data (dots), neural SDE (lines, one deviation)", loc="left")


def variances(ax: Axes, data: Moments, fitted: Moments) -> None:
    for i, colour in enumerate((TEAL, ROSE)):
        ax.plot(TIMES, fitted.variance[:, i], color=colour, lw=2)
        ax.plot(TIMES, data.variance[:, i], "o", color=colour, ms=4.5, mec="white", mew=0.7)
    ax.set(xlabel="t", xlim=(0, 1.06), ylim=(0, None))
    ax.set_title("Variance", loc="left")


def loss_curve(ax: Axes, losses: list[float]) -> None:
    ax.semilogy(losses, color=INK, lw=1.2)
    ax.set(xlabel="iteration", xlim=(0, len(losses)))
    ax.set_title(f"Loss, of a new batch every time: {losses[0]:.3g} to {min(losses[-20:]):.2g}", loc="left")
    ax.grid(axis="y", color="#e5e5e5", lw=0.7)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    off = [float(outcome.fitted.distance(outcome.data)), float(outcome.before.distance(outcome.data))]
    print(f"distance of the moments {off[1]:.3g} -> {off[0]:.2g}; wrote {outcome.picture}")
