"""Multiple shooting: many short solves find what one long solve does not.

A neural ODE is to learn four turns of a van der Pol oscillator. One solve over the whole series has to get the first
turn right before the later ones say anything, and settles for a flat line; groups of a few data each, solved side by
side and drawn together by a penalty on the gaps, have the whole series in view from the first step. Turan & Jaschke,
"Multiple shooting for training neural differential equations on time series" (2021); DiffEqFlux.jl's tutorial.

    python examples/multiple_shooting.py --out runs/shooting
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import INK, ROSE, STYLE, TEAL, descend, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

SPACING, MU = 0.2, 1.0
START = torch.tensor([2.0, 0.0])
GROUP = 6


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    x, v = y.unbind(-1)
    return torch.stack([v, MU * (1 - x**2) * v - x], -1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))


@dataclass
class Outcome:
    #: Root mean square errors of a single solve over the whole series, after training in either way.
    single: float
    shooting: float
    evaluations: tuple[int, int]
    picture: Path


def whole(net: nn.Module, times: Tensor) -> pdf.NeuralODE:
    return pdf.NeuralODE(net, (0.0, float(times[-1])), "rk4", saveat=times, dense=False)


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train both ways (a shorter series when ``quick``), draw ``multiple_shooting.png`` into ``out_dir``."""
    times = SPACING * torch.arange(46 if quick else 131)
    problem = pdf.ODEProblem(van_der_pol, START, (0.0, float(times[-1])))
    data = pdf.solve(problem, "vern7", saveat=times, rtol=1e-7, atol=1e-7).ys
    snapshots = []
    shooting, single = network(), network()

    def shot() -> Tensor:
        found = pdf.multiple_shoot(shooting, data, times, None, "rk4", GROUP, continuity_term=1.0)
        snapshots.append([p.detach() for p in found.predictions])
        return found.loss

    # A shot is five steps of all groups at once; the whole series takes 130, one after the other. So the single solve
    # gets fewer iterations, though more evaluations.
    steps = 160 if quick else 900
    descend(shooting.parameters(), shot, steps, 0.01)
    few = steps // 10 if quick else steps // 6
    descend(single.parameters(), lambda: (whole(single, times)(START) - data).square().mean(), few, 0.01)
    with torch.no_grad():
        found = [whole(net, times)(START) for net in (single, shooting)]
    wrong = [float((path - data).square().mean().sqrt()) for path in found]
    picture = Path(out_dir) / "multiple_shooting.png"
    draw(picture, times, data, snapshots[steps // 10], found[0], found[1])
    return Outcome(wrong[0], wrong[1], (few * 4 * (len(times) - 1), steps * 4 * (GROUP - 1)), picture)


def draw(
    path: Path, times: Tensor, data: Tensor, groups: list[Tensor], single: Tensor, shooting: Tensor
) -> None:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(3, 1, figsize=(10.5, 6.6), layout="constrained", sharex=True, sharey=True)
        for ax in axes:
            ax.plot(times, data[:, 0], "o", color=INK, ms=3, label="data")
        for group, r in zip(groups, pdf.group_ranges(len(times), GROUP), strict=True):
            axes[0].plot(times[r.start : r.stop], group[:, 0], color=TEAL, lw=1.6)
        axes[0].set_title("The groups after a tenth of the training", loc="left")
        axes[1].plot(times, shooting[:, 0], color=TEAL, lw=1.8)
        axes[1].set_title("One solve, after training on groups", loc="left")
        axes[2].plot(times, single[:, 0], color=ROSE, lw=1.8)
        axes[2].set_title("One solve, after training on itself", loc="left")
        axes[2].set_xlabel("t")
        axes[0].set_ylim(-3.2, 3.2)
        save(fig, path)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    for name, value, count in zip(
        ("single solve", "groups"), (outcome.single, outcome.shooting), outcome.evaluations, strict=True
    ):
        print(f"trained on {name}: off by {value:.3f} after {count} evaluations")
    print(f"wrote {outcome.picture}")
