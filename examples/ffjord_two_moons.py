"""Two moons: a density learnt from samples by a continuous normalising flow.

A network's flow carries the moons to a normal distribution; backwards it turns normal noise into moons. The trace of
its Jacobian is estimated with one product an evaluation (Hutchinson), and the flow is kept straight by penalties on its
kinetic energy and Jacobian: Grathwohl et al., "FFJORD" (2019); Finlay et al., "How to train your neural ODE" (2020).

    python examples/ffjord_two_moons.py --out runs/moons
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import INK, ROSE, STYLE, out_dir, save
from matplotlib.axes import Axes
from torch import Tensor, nn

import pydiffeqflux as pdf

SPAN = (0.0, 1.0)
SIDE = 3.2


def two_moons(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Two interleaved half circles with noise, centred."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    points = 1.5 * torch.stack([x, y], -1)
    return points + 0.12 * torch.randn(count, 2, generator=generator)


class Field(nn.Module):
    """A network of time and place."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.net(torch.cat([z, t.expand(*z.shape[:-1], 1)], -1))


@dataclass
class Outcome:
    losses: list[float]
    #: Mean log-density of held-out points: under the flow, and under the best normal distribution.
    held_out: float
    normal: float
    #: The integral of the learnt density over the square that is drawn.
    mass: float
    picture: Path


def train(flow: pdf.FFJORD, iterations: int, batch: int) -> list[float]:
    optimiser = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.02, total_steps=iterations)
    losses = []
    for _ in range(iterations):
        optimiser.zero_grad()
        out = flow(two_moons(batch))
        loss = -out.log_prob.mean()
        (loss + 0.01 * out.kinetic.mean() + 0.01 * out.jacobian.mean()).backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``ffjord_two_moons.png`` into ``out_dir``."""
    torch.manual_seed(0)
    field = Field()
    options = {"rtol": 1e-3, "atol": 1e-3}
    flow = pdf.FFJORD(field, SPAN, 2, "bosh3", trace="hutchinson", regularize=True, **options)
    losses = train(flow, iterations=100 if quick else 500, batch=128 if quick else 256)
    learnt = pdf.FFJORDDistribution(pdf.FFJORD(field, SPAN, 2, rtol=1e-5, atol=1e-5))
    fresh = two_moons(2000)
    normal = torch.distributions.MultivariateNormal(fresh.mean(0), fresh.T.cov())
    with torch.no_grad():
        held_out = float(learnt.log_prob(fresh).mean())
        density, mass = over_a_square(learnt, 80 if quick else 160)
        samples = learnt.sample((1500,))
    picture = Path(out_dir) / "ffjord_two_moons.png"
    draw(picture, learnt.model, fresh[:1500], samples, density, losses)
    return Outcome(losses, held_out, float(normal.log_prob(fresh).mean()), mass, picture)


def over_a_square(learnt: pdf.FFJORDDistribution, points: int) -> tuple[Tensor, float]:
    side = torch.linspace(-SIDE, SIDE, points)
    x, y = torch.meshgrid(side, side, indexing="xy")
    density = learnt.log_prob(torch.stack([x, y], -1)).exp()
    return density, float(density.sum() * (side[1] - side[0]) ** 2)


def draw(
    path: Path, flow: pdf.FFJORD, data: Tensor, samples: Tensor, density: Tensor, losses: list[float]
) -> None:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 4, figsize=(14.5, 3.9), layout="constrained")
        cloud(axes[0], data, "Data", INK)
        axes[1].imshow(density, extent=(-SIDE, SIDE) * 2, origin="lower", cmap="magma")
        axes[1].set(title="Learnt density", xticks=[], yticks=[])
        cloud(axes[2], samples, "Samples, and how they move", ROSE)
        paths(axes[2], flow, samples[:40])
        axes[3].plot(losses, color=INK, lw=1)
        axes[3].set(xlabel="iteration", title="Negative log-likelihood")
        save(fig, path)


def cloud(ax: Axes, points: Tensor, title: str, colour: str) -> None:
    ax.scatter(*points.T, s=3, color=colour, linewidths=0, alpha=0.6)
    ax.set(title=title, aspect="equal", xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), xticks=[], yticks=[])


def paths(ax: Axes, flow: pdf.FFJORD, samples: Tensor) -> None:
    """From the samples to where the flow takes them."""
    with torch.no_grad():
        z = flow.solve(samples, saveat=0.05).ys[0]
    for i in range(z.shape[1]):
        ax.plot(z[:, i, 0], z[:, i, 1], color=INK, lw=0.6)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"log-likelihood of held-out points {outcome.held_out:.3f}, of a normal distribution {outcome.normal:.3f}")
    print(f"the density integrates to {outcome.mass:.4f}; wrote {outcome.picture}")
