"""Predators that need time to grow: a delay Lotka-Volterra system whose lag is learnt with its functional response.

The truth is x' = x (1 - x / 3) - b(x) y, y' = b(x(t - tau)) y(t - tau) - y / 2 with tau = 0.8 and Holling's saturating
b(x) = 1.5 x / (1 + x / 2). How much a predator eats, b, is a network here, and what it ate counts tau later, another
parameter, which starts at half its value. The data are thirty noisy observations. A model of the same form without
a delay, trained as long, is drawn beside it.

    python examples/neural_dde_lotka_volterra.py --out runs/neural_dde
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

LAG, SPAN = 0.8, (0.0, 15.0)
START = torch.tensor([1.0, 0.6])
TIMES = torch.linspace(0.5, 15.0, 30)


def holling(x: Tensor) -> Tensor:
    return 1.5 * x / (1 + x / 2)


class Response(nn.Module):
    """What one predator eats of ``x`` prey: positive, nothing of nothing, the rest a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.softplus(self.net(x.unsqueeze(-1)).squeeze(-1))


class Populations(nn.Module):
    """The right-hand side, of the present and of the past (which, without a delay, are one)."""

    def __init__(self, response: nn.Module) -> None:
        super().__init__()
        self.response = response

    def forward(self, y: Tensor, past: Tensor) -> Tensor:
        prey, predators = y
        then, eaters = past
        return torch.stack(
            [prey * (1 - prey / 3) - self.response(prey) * predators, self.response(then) * eaters - predators / 2]
        )


class Function(nn.Module):
    """Holling's response as a module, for the data."""

    def forward(self, x: Tensor) -> Tensor:
        return holling(x)


@dataclass
class Fit:
    layer: nn.Module
    losses: list[float]
    lags: list[float]
    curve: Tensor


@dataclass
class Outcome:
    data: Tensor
    truth: Tensor
    delayed: Fit
    instant: Fit
    picture: Path


def layer(lag: nn.Parameter | float | None, response: nn.Module, saveat: Tensor = TIMES) -> nn.Module:
    """A delay equation; without a lag an ordinary one. Before the start nothing changes."""
    model = Populations(response)
    if lag is None:
        return pdf.NeuralODE(lambda y: model(y, y), SPAN, saveat=saveat, rtol=1e-4)
    return pdf.NeuralDDE(model, SPAN, lag, saveat=saveat, rtol=1e-4)


def fit(data: Tensor, lag: nn.Parameter | None, iterations: int) -> Fit:
    response = Response()
    model = layer(lag, response)
    groups = [{"params": response.parameters(), "lr": 0.02}]
    groups += [] if lag is None else [{"params": [lag], "lr": 0.01}]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=1e-4)
    losses, lags = [], []
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = (model(START) - data).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(response.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        lags.append(0.0 if lag is None else lag.item())
    fine = torch.linspace(*SPAN, 200)[1:]
    with torch.no_grad():
        kept = lag if lag is None else lag.item()
        return Fit(response, losses, lags, layer(kept, response, fine)(START))


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``neural_dde_lotka_volterra.png`` into ``out_dir``."""
    torch.manual_seed(0)
    with torch.no_grad():
        fine = torch.linspace(*SPAN, 200)[1:]
        truth = layer(LAG, Function(), fine)(START)
        data = layer(LAG, Function())(START) + 0.02 * torch.randn(len(TIMES), 2)
    iterations = 40 if quick else 400
    delayed = fit(data, nn.Parameter(torch.tensor(LAG / 2)), iterations)
    instant = fit(data, None, iterations)
    outcome = Outcome(data, truth, delayed, instant, Path(out_dir) / "neural_dde_lotka_volterra.png")
    draw(outcome)
    return outcome


def draw(outcome: Outcome) -> None:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(11.5, 6.4), layout="constrained")
        axes = fig.subplot_mosaic("AAA;BBB;CDE", height_ratios=(1, 1, 1.05))
        populations(axes["A"], outcome, outcome.delayed, f"With a lag, found to be {outcome.delayed.lags[-1]:.2f}")
        populations(axes["B"], outcome, outcome.instant, "Without")
        axes["A"].tick_params(labelbottom=False)
        lag_curve(axes["C"], outcome.delayed)
        responses(axes["D"], outcome)
        loss_curves(axes["E"], outcome)
        save(fig, outcome.picture)


def populations(ax: Axes, outcome: Outcome, fitted: Fit, title: str) -> None:
    fine = torch.linspace(*SPAN, 200)[1:]
    for i, (name, colour) in enumerate((("prey", TEAL), ("predators", ROSE))):
        ax.plot(fine, outcome.truth[:, i], color=GREY, lw=3, alpha=0.5)
        ax.plot(fine, fitted.curve[:, i], color=colour, lw=1.6)
        ax.plot(TIMES, outcome.data[:, i], "o", color=colour, ms=4.5, mec="white", mew=0.7)
        place = {"xytext": (6, -3), "textcoords": "offset points"}
        ax.annotate(name, (SPAN[1], float(fitted.curve[-1, i])), color=colour, **place)
    ax.set(xlim=(0, SPAN[1] + 1.4), ylim=(0, 2.4), xticks=range(0, 16, 3), xlabel="" if "With a" in title else "t")
    ax.set_title(f"{title}: data (dots), fit (thin), truth (grey)", loc="left")


def lag_curve(ax: Axes, fitted: Fit) -> None:
    ax.axhline(LAG, color=GREY, lw=3, alpha=0.5)
    ax.plot(fitted.lags, color=INK, lw=1.6)
    ax.set(xlabel="iteration", xlim=(0, len(fitted.lags)))
    ax.set_title("The lag, and the true one", loc="left")


def responses(ax: Axes, outcome: Outcome) -> None:
    # As far as there were prey to eat.
    x = torch.linspace(float(outcome.truth[:, 0].min()), float(outcome.truth[:, 0].max()), 100)
    ax.plot(x, holling(x), color=GREY, lw=3, alpha=0.5, label="truth")
    with torch.no_grad():
        ax.plot(x, outcome.delayed.layer(x), color=INK, lw=1.6, label="with the lag")
        ax.plot(x, outcome.instant.layer(x), color=INK, lw=1.6, ls=":", label="without")
    ax.set(xlabel="prey", ylim=(0, None))
    ax.set_title("What a predator eats", loc="left")
    ax.legend(frameon=False, fontsize=9)


def loss_curves(ax: Axes, outcome: Outcome) -> None:
    ax.semilogy(outcome.delayed.losses, color=INK, lw=1.2, label="with the lag")
    ax.semilogy(outcome.instant.losses, color=INK, lw=1.2, ls=":", label="without")
    ax.set(xlabel="iteration", xlim=(0, len(outcome.delayed.losses)))
    ax.set_title("Loss", loc="left")
    ax.grid(axis="y", color="#e5e5e5", lw=0.7)
    ax.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    delayed, instant = outcome.delayed, outcome.instant
    print(f"lag {delayed.lags[0]:.2f} -> {delayed.lags[-1]:.3f} (the truth: {LAG})")
    print(f"loss {delayed.losses[-1]:.2g} with it, {instant.losses[-1]:.2g} without; wrote {outcome.picture}")
