"""A residual network is Euler's method with step 1; what lies beyond is a differential equation.

A residual network is trained to tell two moons apart. Its blocks y + f_k(y), taken as dy/dt = f_k(y) for t in
[k, k + 1), are a NeuralODE, and with method="euler", dt=1.0 the two agree to the last bit, gradients included. Then
every block is cut into m blocks of a 1/m-th of its strength, with the same weights: as m grows, the network's output
converges to the flow of the differential equation, with slope 1 for Euler and faster for better methods.

    python examples/resnet_as_euler.py --out runs/resnet
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from _common import STYLE, out_dir, save
from matplotlib.axes import Axes
from torch import Tensor, nn

import pydiffeqflux as pdf

DEPTH = 6
#: Fixed-step methods, and the colour of each.
METHODS = {"euler": "#d1495b", "midpoint": "#edae49", "rk4": "#0b7a75"}
MOONS = ("#1d3557", "#e07a5f")


class Blocks(nn.Module):
    """f(t, y) = f_k(y) for t in [k, k + 1): the residual branches, one after the other."""

    def __init__(self, depth: int, width: int = 16):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 2)) for _ in range(depth)
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.blocks[min(int(t), len(self.blocks) - 1)](y)


class ResNet(nn.Module):
    """y + f_0(y), and so on: written without any of this package."""

    def __init__(self, blocks: Blocks):
        super().__init__()
        self.branches = blocks.blocks

    def forward(self, y: Tensor) -> Tensor:
        for branch in self.branches:
            y = y + branch(y)
        return y


@dataclass
class Outcome:
    accuracy: float
    outputs_equal: bool
    gradients_equal: bool
    errors: dict[str, list[float]]
    slopes: dict[str, float]
    picture: Path


def moons(count: int) -> tuple[Tensor, Tensor]:
    angle = math.pi * torch.rand(count)
    label = torch.arange(count) % 2
    side = 1.0 - 2.0 * label
    points = torch.stack([torch.cos(angle) * side + label - 0.5, torch.sin(angle) * side + 0.5 * label - 0.25], dim=1)
    return points + 0.08 * torch.randn(count, 2), label


def train(resnet: ResNet, points: Tensor, label: Tensor, iterations: int) -> float:
    """The share of points that end up on their own side of a straight line.

    Long ways cost: each block may only do a little, which is what makes the network resemble a flow.
    """
    head = nn.Linear(2, 2)
    optimiser = torch.optim.Adam([*resnet.parameters(), *head.parameters()], lr=0.01)
    for _ in range(iterations):
        optimiser.zero_grad()
        y, way = points, torch.zeros(())
        for branch in resnet.branches:
            move = branch(y)
            y, way = y + move, way + move.square().sum(1).mean()
        (nn.functional.cross_entropy(head(y), label) + 0.05 * way).backward()
        optimiser.step()
    return (head(resnet(points)).argmax(1) == label).double().mean().item()


def gradients(model: nn.Module, blocks: Blocks, points: Tensor) -> tuple[Tensor, list[Tensor]]:
    blocks.zero_grad()
    out = model(points)
    out.square().sum().backward()
    return out.detach(), [p.grad.clone() for p in blocks.parameters() if p.grad is not None]


def refine(blocks: Blocks, points: Tensor, parts: list[int]) -> tuple[Tensor, dict[str, list[float]]]:
    """The flow of the equation, and how far each method is from it with ``m`` steps a block."""
    joints = [float(k) for k in range(1, DEPTH)]  # where f jumps from one block to the next: steps must end there
    span = (0.0, float(DEPTH))
    with torch.no_grad():
        flow = pdf.NeuralODE(blocks, span, "vern7", tstops=joints, rtol=1e-11, atol=1e-11)(points)
        errors = {
            method: [
                distance(pdf.NeuralODE(blocks, span, method, dt=1.0 / m, tstops=joints)(points), flow) for m in parts
            ]
            for method in METHODS
        }
    return flow, errors


def distance(y: Tensor, flow: Tensor) -> float:
    return float((y - flow).norm() / flow.norm())


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train, compare, refine (less of each when ``quick``); draw ``resnet_as_euler.png`` into ``out_dir``."""
    torch.manual_seed(0)
    points, label = moons(100 if quick else 300)
    blocks = Blocks(DEPTH)
    resnet = ResNet(blocks)
    accuracy = train(resnet, points, label, 60 if quick else 300)

    euler = pdf.NeuralODE(blocks, (0.0, float(DEPTH)), "euler", dt=1.0, backend="eager")
    (theirs, their_gradients), (ours, our_gradients) = (gradients(m, blocks, points) for m in (resnet, euler))
    same = all(torch.equal(a, b) for a, b in zip(their_gradients, our_gradients, strict=True))

    wide, precise = Blocks(DEPTH).double(), points.double()  # float32 would drown the small errors in rounding
    wide.load_state_dict(blocks.state_dict())
    parts = [1, 2, 4, 8, 16, 32, 64] if quick else [1, 2, 4, 8, 16, 32, 64, 128, 256]
    _, errors = refine(wide, precise, parts)
    slopes = {name: slope(parts[-4:], e[-4:]) for name, e in errors.items()}
    picture = Path(out_dir) / "resnet_as_euler.png"
    draw(picture, wide, precise, label, parts, errors, slopes)
    return Outcome(accuracy, torch.equal(theirs, ours), same, errors, slopes, picture)


def slope(parts: list[int], errors: list[float]) -> float:
    """Of the straight line through the logarithms, where the error is still above rounding."""
    kept = [(m, e) for m, e in zip(parts, errors, strict=True) if e > 1e-11]
    return -float(np.polyfit(*np.log(np.array(kept)).T, 1)[0])


def draw(
    path: Path, blocks: Blocks, points: Tensor, label: Tensor, parts: list[int],
    errors: dict[str, list[float]], slopes: dict[str, float],
) -> None:  # fmt: skip
    with plt.rc_context(STYLE), torch.no_grad():
        fig, (net, flow, limit) = plt.subplots(1, 3, figsize=(13, 4.4), width_ratios=(1, 1, 1.05), layout="constrained")
        fine = {"dt": 0.02, "tstops": [float(k) for k in range(1, DEPTH)]}
        paths(net, blocks, points, label, {"dt": 1.0})
        paths(flow, blocks, points, label, fine)
        flow.set(xlim=net.get_xlim(), ylim=net.get_ylim())
        key = "small dots: input\nlarge dots: output"
        net.text(0.02, 0.02, key, transform=net.transAxes, color="#555555", fontsize=9)
        net.set_title(f"Residual network, {DEPTH} blocks", loc="left")
        flow.set_title("Every block cut into 50", loc="left")
        convergence(limit, parts, errors, slopes)
        save(fig, path)


def paths(ax: Axes, blocks: Blocks, points: Tensor, label: Tensor, options: dict) -> None:
    """Where points go: thin paths of some of them, small dots at the input, large ones at the output."""
    sol = pdf.solve(pdf.ODEProblem(blocks, points, (0.0, float(DEPTH))), "euler", **options)
    for kind, colour in enumerate(MOONS):
        rows = (label == kind).nonzero().flatten()
        some = rows[:: max(1, len(rows) // 30)]
        marks = "o" if len(sol.ts) < 20 else ""
        ax.plot(sol.ys[:, some, 0], sol.ys[:, some, 1], color=colour, lw=0.8, marker=marks, ms=1.8, alpha=0.45)
        ax.scatter(*sol.ys[0, rows].T, s=5, color=colour, alpha=0.5, lw=0)
        ax.scatter(*sol.ys[-1, rows].T, s=24, color=colour, ec="white", lw=0.5, zorder=3)
    ax.set(xlabel="$y_1$", ylabel="$y_2$")


def convergence(ax: Axes, parts: list[int], errors: dict[str, list[float]], slopes: dict[str, float]) -> None:
    for name, colour in METHODS.items():
        ax.loglog(parts, errors[name], "o-", color=colour, ms=5, lw=1.8)
        ax.annotate(
            f"{name}\nslope {slopes[name]:.2f}", (parts[-1], errors[name][-1]), xytext=(8, 0),
            textcoords="offset points", color=colour, va="center", annotation_clip=False,
        )  # fmt: skip
    ax.plot(1, errors["euler"][0], "o", ms=12, mfc="none", mec="#333333", mew=1.3)
    ax.annotate("the residual network", (1, errors["euler"][0]), xytext=(12, 6), textcoords="offset points")
    ax.set_xscale("log", base=2)
    ax.set_ylim(top=8.0)
    ax.set(xlabel="m, steps per block", ylabel="distance from the flow (relative)")
    ax.set_title("The limit of ever finer blocks", loc="left")
    ax.grid(which="major", color="#e5e5e5", lw=0.7)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"accuracy {outcome.accuracy:.3f}")
    print(f"outputs equal: {outcome.outputs_equal}, gradients equal: {outcome.gradients_equal}")
    print("slopes " + ", ".join(f"{name} {s:.2f}" for name, s in outcome.slopes.items()) + f"; wrote {outcome.picture}")
