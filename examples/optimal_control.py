"""Optimal control: a network swings a pendulum up with a motor that is too weak to lift it.

The motor has not the strength to hold the pendulum out sideways, so it has to swing back and forth first. The
controller is a network of the state, u = u_max tanh(net(sin, cos, speed)), made odd: mirrored states get mirrored
torques. The equation of motion runs with it inside, the cost is a state of its own, c' = 1 + cos(angle) + ..., and its
gradient in the network's weights comes back through the solve. It is trained from many starts at once, so it is a
feedback and not one schedule of torques; they lie near the top at first, and further and further down. After SciML's
tutorial "Solving optimal control problems with universal differential equations".

    python examples/optimal_control.py --out runs/control
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GREY, INK, ROSE, STYLE, TEAL, descend, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

TORQUE, DAMPING, END = 0.7, 0.05, 9.0  # in units of weight times length, and of the pendulum's own time


class Swing(nn.Module):
    """Angle (0 hangs down, pi stands up), speed and cost of a pendulum with a network at its motor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def torque(self, angle: Tensor, speed: Tensor) -> Tensor:
        seen = torch.stack([angle.sin(), angle.cos(), speed / 2], -1)
        mirrored = torch.stack([-angle.sin(), angle.cos(), -speed / 2], -1)
        return TORQUE * torch.tanh((self.net(seen) - self.net(mirrored))[..., 0])

    def forward(self, y: Tensor) -> Tensor:
        angle, speed, _ = y.unbind(-1)
        torque = self.torque(angle, speed)
        cost = 1 + angle.cos() + 0.05 * speed**2 + 0.1 * torque**2
        return torch.stack([speed, -angle.sin() - DAMPING * speed + torque, cost], -1)


def starts(count: int, reach: float = 1.0) -> Tensor:
    """All around, or only within a part of the circle below the top; moving a little, nothing spent yet."""
    off, speed = (2 * torch.rand(2, count) - 1).unbind()
    return torch.stack([math.pi * (1 + reach * off), 0.5 * speed, torch.zeros(count)], -1)


@dataclass
class Outcome:
    losses: list[float]
    #: Mean cost and share of fresh starts that stand up at the end (within 15 degrees, at rest), before and after.
    cost: tuple[float, float]
    upright: tuple[float, float]
    picture: Path


def standing(end: Tensor) -> float:
    off = torch.atan2((end[:, 0] - math.pi).sin(), (end[:, 0] - math.pi).cos()).abs()
    return ((off < math.radians(15)) & (end[:, 1].abs() < 0.3)).float().mean().item()


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (near the top only when ``quick``), draw ``optimal_control.png`` into ``out_dir``."""
    torch.manual_seed(0)
    swing = Swing()
    end, reach = (4.0, 0.15) if quick else (END, 1.0)
    fresh = starts(100, reach)
    times = torch.linspace(0, end, 241)
    layer = pdf.NeuralODE(swing, (0.0, end), "rk4", dt=0.2 if quick else 0.1)
    with torch.no_grad():
        before = layer(fresh)

    iterations, done = 80 if quick else 400, 0

    def loss() -> Tensor:
        nonlocal done
        done += 1
        last = layer(starts(64, min(reach, 0.25 + done / (0.6 * iterations))))
        return last[:, 2].mean() + 2 * (1 + last[:, 0].cos() + 0.5 * last[:, 1] ** 2).mean()

    losses = descend(swing.parameters(), loss, iterations, 0.01)
    with torch.no_grad():
        after = layer(fresh)
        path = pdf.NeuralODE(swing, (0.0, end), "tsit5", saveat=times, rtol=1e-5)(fresh)
    cost = before[:, 2].mean().item(), after[:, 2].mean().item()
    picture = draw(out_dir, swing, times, path, losses)
    return Outcome(losses, cost, (standing(before), standing(after)), picture)


def draw(out_dir: str | Path, swing: Swing, times: Tensor, path: Tensor, losses: list[float]) -> Path:
    with plt.rc_context(STYLE):
        fig = plt.figure(figsize=(12.0, 5.4), layout="constrained")
        axes = fig.subplot_mosaic("AB;AC;AD", width_ratios=(1.15, 1), height_ratios=(1.2, 1, 1))
        plane, over, motor, curve = (axes[k] for k in "ABCD")
        turn = 2 * math.pi
        angle, speed = torch.meshgrid(torch.linspace(0, turn, 200), torch.linspace(-2.6, 2.6, 160), indexing="xy")
        with torch.no_grad():
            torque = swing.torque(angle, speed)
            spent = swing.torque(path[..., 0], path[..., 1])
        grid = (x.numpy() for x in (angle, speed, torque))
        filled = plane.pcolormesh(*grid, cmap="RdBu_r", vmin=-1.6 * TORQUE, vmax=1.6 * TORQUE)
        filled.set_rasterized(True)
        bar = fig.colorbar(filled, ax=plane, label="torque", location="bottom", shrink=0.6, pad=0.02)
        bar.ax.set_xlim(-TORQUE, TORQUE)
        around = path[..., 0] % turn
        around[1:][around.diff(dim=0).abs() > 1] = math.nan  # no line back across the picture
        plane.plot(around[:, :25], path[:, :25, 1], color=INK, lw=0.8, alpha=0.8)
        plane.plot([math.pi], [0], "o", mfc="white", mec=INK, ms=8, ls="none", label="upright")
        plane.set(xlabel="angle", ylabel="speed", xlim=(0, turn), ylim=(-2.6, 2.6))
        plane.set_xticks([0, math.pi, 2 * math.pi], ["0", "$\\pi$", "$2\\pi$"])
        plane.set_title("The controller, and 25 runs")
        plane.legend(loc="upper left", frameon=True, edgecolor="none")
        over.plot(times, -path[..., 0].cos(), color=TEAL, lw=0.5, alpha=0.5)
        over.set(xlabel="t", ylabel="height", ylim=(-1.1, 1.1), xlim=(0, float(times[-1])))
        over.set_title("Height of the mass, 100 fresh starts")
        motor.plot(times, spent[:, :6], color=ROSE, lw=1.0, alpha=0.8)
        motor.axhline(TORQUE, color=GREY, lw=0.8, ls=":")
        motor.axhline(-TORQUE, color=GREY, lw=0.8, ls=":")
        motor.set(xlabel="t", ylabel="torque", xlim=(0, float(times[-1])))
        motor.set_title("Torque, six of them")
        curve.plot(losses, color=INK, lw=0.9)
        curve.set(xlabel="iteration", ylabel="cost", xlim=(0, len(losses)))
        curve.set_title("Training")
        return save(fig, Path(out_dir) / "optimal_control.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"cost {outcome.cost[0]:.2f} -> {outcome.cost[1]:.2f}")
    print(f"upright at the end: {outcome.upright[0]:.0%} -> {outcome.upright[1]:.0%}; wrote {outcome.picture}")
