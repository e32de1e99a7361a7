"""Concentric circles: what a neural ODE cannot do in the plane, and an augmented one can.

Points in a disc are to be told from points in the ring around it, by a straight line after a flow. A flow of the
plane deforms it like rubber: the disc stays inside the ring, and no line separates the two. All that it can do is to
squeeze the disc out through a gap between two of the ring's points. With one more dimension, which starts at zero, it
lifts the disc out. The example of Dupont, Doucet & Teh, "Augmented neural ODEs" (2019), and of
DiffEqFlux.jl's tutorial.

    python examples/augmented_circles.py --out runs/circles
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import STYLE, descend, out_dir, save
from matplotlib.axes import Axes
from torch import Tensor, nn

import pydiffeqflux as pdf

SPAN = (0.0, 1.0)
INNER, OUTER, INK = "#0b7a75", "#d1495b", "#1d3557"


def circles(count: int) -> tuple[Tensor, Tensor]:
    """Points in the disc of radius 1 (labels -1) and in the ring from 2 to 3 (labels 1)."""
    inside = torch.sqrt(torch.rand(count))
    outside = torch.sqrt(4 + 5 * torch.rand(count))
    radius = torch.cat([inside, outside])
    angle = 2 * torch.pi * torch.rand(2 * count)
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return points, torch.cat([-torch.ones(count), torch.ones(count)])


class Classifier(nn.Module):
    """A flow, then a straight line."""

    def __init__(self, extra_dims: int, width: int = 32):
        super().__init__()
        size = 2 + extra_dims
        net = nn.Sequential(
            nn.Linear(size, width), nn.Softplus(), nn.Linear(width, width), nn.Softplus(), nn.Linear(width, size)
        )
        options = {"rtol": 1e-3, "atol": 1e-4}
        if extra_dims:
            self.flow: nn.Module = pdf.AugmentedNeuralODE(net, SPAN, extra_dims, **options)
        else:
            self.flow = pdf.NeuralODE(net, SPAN, **options)
        self.read = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.flow(x))[:, 0]


@dataclass
class Trained:
    model: Classifier
    losses: list[float]
    accuracy: float
    evaluations: int


@dataclass
class Outcome:
    plain: Trained
    augmented: Trained
    picture: Path


def train(model: Classifier, points: Tensor, labels: Tensor, iterations: int) -> Trained:
    def loss() -> Tensor:
        return nn.functional.softplus(-labels * model(points)).mean()

    losses = descend(model.parameters(), loss, iterations, 0.02)
    with torch.no_grad():
        accuracy = float((model(points).sign() == labels).float().mean())
        evaluations = model.flow.solve(points).stats.nf
    return Trained(model, losses, accuracy, evaluations)


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train both (fewer iterations when ``quick``), draw ``augmented_circles.png`` into ``out_dir``."""
    torch.manual_seed(0)
    points, labels = circles(100 if quick else 200)
    iterations = 60 if quick else 250
    plain = train(Classifier(0), points, labels, iterations)
    augmented = train(Classifier(1), points, labels, iterations)
    picture = Path(out_dir) / "augmented_circles.png"
    draw(picture, points, labels, plain, augmented)
    return Outcome(plain, augmented, picture)


def draw(path: Path, points: Tensor, labels: Tensor, plain: Trained, augmented: Trained) -> None:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(12.5, 4.2), layout="constrained")
        data, flat, curve = (fig.add_subplot(1, 4, i) for i in (1, 2, 4))
        space = fig.add_subplot(1, 4, 3, projection="3d")
        colours = [INNER if label < 0 else OUTER for label in labels]
        data.scatter(*points.T, s=8, c=colours)
        data.set(aspect="equal", title="Data")
        plane(flat, plain, points, colours)
        with torch.no_grad():
            lifted = augmented.model.flow(points)
        space.scatter(*lifted.T, s=6, c=colours, depthshade=False)
        space.set(title="Augmented: lifted apart", xticks=[], yticks=[], zticks=[])
        for name, result, colour in (("neural ODE", plain, INK), ("augmented", augmented, OUTER)):
            curve.semilogy(result.losses, color=colour, lw=1.6, label=f"{name}: {result.accuracy:.0%} right")
        curve.set(xlabel="iteration", title="Loss")
        curve.legend(frameon=False)
        save(fig, path)


def plane(ax: Axes, trained: Trained, points: Tensor, colours: list[str]) -> None:
    """Where the plain flow takes the points, and the line that does its best."""
    with torch.no_grad():
        ends = trained.model.flow(points)
        normal, shift = trained.model.read.weight[0].detach(), trained.model.read.bias[0].detach()
    ax.scatter(*ends.T, s=8, c=colours)
    low, high = ends.amin(0), ends.amax(0)
    along = torch.stack([-normal[1], normal[0]]) / normal.norm()
    foot = -shift * normal / normal.square().sum()
    line = foot + torch.linspace(-1, 1, 2)[:, None] * 2 * (high - low).norm() * along
    ax.plot(*line.T, color=INK, lw=1)
    pad = 0.1 * (high - low)
    ax.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))
    ax.set(title="Neural ODE: after the flow", xticks=[], yticks=[])


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    for name, result in (("neural ODE", outcome.plain), ("augmented", outcome.augmented)):
        print(f"{name}: loss {result.losses[-1]:.3g}, {result.accuracy:.1%} right, {result.evaluations} evaluations")
    print(f"wrote {outcome.picture}")
