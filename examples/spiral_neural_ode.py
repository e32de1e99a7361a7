"""Learn a spiral: a neural ODE trained on thirty points of one trajectory.

The truth is dy/dt = y^3 A; the network that has to find it sees y^3 too and is otherwise free: 2-50-2 with tanh.
The example of Chen et al., "Neural ordinary differential equations" (2018), and of DiffEqFlux.jl's tutorial.

    python examples/spiral_neural_ode.py --out runs/spiral
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
START = torch.tensor([2.0, 0.0])
TIMES = torch.linspace(0.0, 1.5, 30)
SPAN = (0.0, 1.5)


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ TRUTH


class Cubed(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y**3


def network() -> nn.Sequential:
    net = nn.Sequential(Cubed(), nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
    for layer in (net[1], net[3]):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


@dataclass
class Outcome:
    losses: list[float]
    data: Tensor
    prediction: Tensor
    picture: Path


def train(node: pdf.NeuralODE, data: Tensor, iterations: int) -> list[float]:
    optimiser = torch.optim.Adam(node.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=iterations)
    losses = []
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = ((node(START) - data) ** 2).sum()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``spiral_neural_ode.png`` into ``out_dir``."""
    torch.manual_seed(2)
    truth = pdf.solve(pdf.ODEProblem(spiral, START, SPAN), saveat=TIMES, rtol=1e-7, atol=1e-7)
    node = pdf.NeuralODE(network(), SPAN, "tsit5", saveat=TIMES, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        before = node.solve(START)
    losses = train(node, truth.ys, iterations=80 if quick else 400)
    with torch.no_grad():
        after = node.solve(START)
    picture = Path(out_dir) / "spiral_neural_ode.png"
    draw(picture, truth, before, after, node.model, losses)
    return Outcome(losses, truth.ys, after.ys, picture)


def draw(
    path: Path,
    truth: pdf.Solution,
    before: pdf.Solution,
    after: pdf.Solution,
    net: nn.Module,
    losses: list[float],
) -> None:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(11.5, 5.0), layout="constrained")
        plane, series, curve = fig.subplot_mosaic("AB;AC", width_ratios=(1.12, 1)).values()
        phase_plane(plane, truth, before, after, net)
        over_time(series, truth, after)
        loss_curve(curve, losses)
        save(fig, path)


def smooth(sol: pdf.Solution, points: int = 400) -> Tensor:
    return sol(torch.linspace(*SPAN, points))


def phase_plane(ax: Axes, truth: pdf.Solution, before: pdf.Solution, after: pdf.Solution, net: nn.Module) -> None:
    """The learned vector field, and the trajectories in it."""
    side = torch.linspace(-2.4, 2.4, 40)
    x, y = torch.meshgrid(side, side, indexing="xy")
    with torch.no_grad():
        field = net(torch.stack([x, y], dim=-1))
    speed = field.norm(dim=-1)
    ax.streamplot(
        side.numpy(), side.numpy(), field[..., 0].numpy(), field[..., 1].numpy(),
        color=speed.log1p().numpy(), cmap="Greys", linewidth=0.7, density=1.15, arrowsize=0.7,
        norm=plt.Normalize(-2.0, float(speed.log1p().max()) * 1.6),
    )  # fmt: skip
    start, end = smooth(before), smooth(after)
    ax.plot(start[:, 0], start[:, 1], color=GREY, lw=2.2, ls=(0, (2, 1)), label="before training", zorder=3)
    ax.plot(end[:, 0], end[:, 1], color=ROSE, lw=2.2, label="neural ODE", zorder=4)
    ax.plot(truth.ys[:, 0], truth.ys[:, 1], "o", color=INK, ms=5, mec="white", mew=0.7, label="data", zorder=5)
    ax.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xlabel="$y_1$", ylabel="$y_2$", aspect="equal")
    ax.set_title("Phase plane, with the learned field", loc="left")
    ax.legend(loc="lower right", framealpha=1.0, edgecolor="none")


def over_time(ax: Axes, truth: pdf.Solution, after: pdf.Solution) -> None:
    fine, end = torch.linspace(*SPAN, 400), smooth(after)
    for i, colour in enumerate((TEAL, ROSE)):
        ax.plot(fine, end[:, i], color=colour, lw=2)
        ax.plot(truth.ts, truth.ys[:, i], "o", color=colour, ms=4.5, mec="white", mew=0.7)
        place = {"xytext": (6, 2 - 10 * i), "textcoords": "offset points"}
        ax.annotate(f"$y_{i + 1}$", (1.5, float(end[-1, i])), color=colour, **place)
    ax.set(xlabel="t", xlim=(0, 1.53))
    ax.set_title("Data (dots) and prediction (lines)", loc="left")


def loss_curve(ax: Axes, losses: list[float]) -> None:
    ax.semilogy(losses, color=INK, lw=1.4)
    ax.set(xlabel="iteration", ylabel="sum of squares", xlim=(0, len(losses)))
    ax.set_title(f"Loss: {losses[0]:.3g} to {losses[-1]:.2g}", loc="left")
    ax.grid(axis="y", color="#e5e5e5", lw=0.7)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"loss {outcome.losses[0]:.3g} -> {outcome.losses[-1]:.3g}; wrote {outcome.picture}")
