"""Robertson's reaction as a differential-algebraic equation: a network finds a rate that depends on the concentrations.

Two of the three concentrations have differential equations; the third follows from the law that mass is conserved, 0 =
A + B + C - 1, a row of zeros in the mass matrix. What is known are the slow reaction and the mechanism; the two fast
rates, 3e7 B and 1e4 C, are not: their logarithms are the outputs of a small network of the logarithms of the
concentrations (a universal differential equation). Whatever the network says, the law holds to rounding errors. B stays
below 4e-5 and the rates differ by nine orders of magnitude: only a stiff method gets anywhere.

    python examples/rober_mass_matrix.py --out runs/rober_mass_matrix
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import STYLE, out_dir, save
from matplotlib.axes import Axes
from torch import Tensor, nn

import pydiffeqflux as pdf

D = torch.float64
SPAN = (0.0, 1e4)
START = torch.tensor([1.0, 0.0, 0.0], dtype=D)
MASS = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=D))
TOLERANCES = {"rtol": 1e-4, "atol": torch.tensor([1e-6, 1e-10, 1e-6], dtype=D)}
COLOURS = ("#0b7a75", "#d1495b", "#edae49")


def conservation(y: Tensor) -> Tensor:
    return y.sum(-1, keepdim=True) - 1.0


def reactions(y: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """dA/dt and dB/dt: A -> B slowly, B -> C at the rate ``second``, B -> A at the rate ``third`` (each per B)."""
    a, b, _ = y.unbind(-1)
    made, used = 0.04 * a, second * b
    return torch.stack([third * b - made, made - third * b - used], -1)


def truth(y: Tensor) -> Tensor:
    """Robertson's (1966) rates: 3e7 B and 1e4 C."""
    return reactions(y, 3e7 * y[..., 1], 1e4 * y[..., 2])


def seen(y: Tensor) -> Tensor:
    """What is compared with the data: A and C as they are, the tiny B by its logarithm."""
    a, b, c = y.unbind(-1)
    return torch.stack([a, (b.clamp_min(0) + 1e-7).log(), c], -1)


class Mechanism(nn.Module):
    """The same reactions, the two fast rates by a network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(D)
        with torch.no_grad():
            self.net[-1].weight.mul_(0.1)
            self.net[-1].bias.copy_(torch.tensor([4.0, 6.0]))  # of the right order: e^4 and e^6 a second

    def rates(self, y: Tensor) -> tuple[Tensor, Tensor]:
        b, c = y[..., 1].clamp_min(1e-9), y[..., 2].clamp_min(1e-9)
        logs = torch.stack([b.log() + 11.0, c.log() + 4.0], -1)  # concentrations of some 1e-5 and 1e-2
        second, third = self.net(logs / 4.0).unbind(-1)
        return second.exp(), third.exp()

    def forward(self, y: Tensor) -> Tensor:
        return reactions(y, *self.rates(y))


@dataclass
class Outcome:
    ts: Tensor
    data: Tensor
    before: Tensor
    after: Tensor
    losses: list[float]
    #: Along the true solution: the two rates, true and found.
    rates: tuple[Tensor, Tensor]
    #: The largest violation of the conservation law, of all solutions that the training went through.
    violation: float
    picture: Path


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (for fewer iterations when ``quick``), draw ``rober_mass_matrix.png`` into ``out_dir``."""
    torch.manual_seed(0)
    ts = torch.logspace(-4, 4, 25, dtype=D)
    exact = pdf.NeuralMassMatrixODE(truth, conservation, SPAN, MASS, "rodas5p", saveat=ts, rtol=1e-8, atol=1e-12)
    with torch.no_grad():
        data = exact(START)
    mechanism = Mechanism()
    layer = pdf.NeuralMassMatrixODE(mechanism, conservation, SPAN, MASS, "rodas5p", saveat=ts, **TOLERANCES)
    optimizer = torch.optim.Adam(mechanism.parameters(), lr=0.05)
    iterations = 12 if quick else 200
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, 1e-3)
    losses, violation = [], 0.0
    before = data
    for iteration in range(iterations):
        optimizer.zero_grad()
        ys = layer(START)
        loss = (seen(ys) - seen(data)).square().mean()
        loss.backward()
        before = ys.detach() if iteration == 0 else before
        losses.append(loss.item())
        violation = max(violation, float(conservation(ys.detach()).abs().max()))
        optimizer.step()
        decay.step()
    with torch.no_grad():
        after = layer(START)
        rates = (torch.stack([3e7 * data[:, 1], 1e4 * data[:, 2]]), torch.stack(mechanism.rates(data)))
    outcome = Outcome(ts, data, before, after, losses, rates, violation, Path(out_dir) / "rober_mass_matrix.png")
    draw(outcome)
    return outcome


def draw(outcome: Outcome) -> None:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", width_ratios=(1.4, 1, 1))
        concentrations(axes[0], outcome)
        found_rates(axes[1], outcome)
        axes[2].semilogy(outcome.losses, color=COLOURS[0], lw=1.4)
        axes[2].set(xlabel="iteration", ylabel="mean square error (scaled)")
        axes[2].set_title(f"Training: A + B + C = 1 to {outcome.violation:.0e}", loc="left")
        save(fig, outcome.picture)


def concentrations(ax: Axes, outcome: Outcome) -> None:
    for k, (name, colour) in enumerate(zip(("A", "B, times 25 000", "C"), COLOURS, strict=True)):
        scale = (1.0, 1 / 25_000, 1.0)[k]
        ax.semilogx(outcome.ts, outcome.data[:, k] / scale, "o", ms=4, color=colour, mec="white", mew=0.5)
        ax.semilogx(outcome.ts, outcome.before[:, k] / scale, lw=1, ls=(0, (2, 2)), color=colour)
        ax.semilogx(outcome.ts, outcome.after[:, k] / scale, lw=1.6, color=colour, label=name)
    ax.set(xlabel="t", ylim=(-0.05, 1.25))
    ax.set_title("Data (dots), before (dashed) and after training", loc="left")
    ax.legend(frameon=False, fontsize=9, loc=(0.25, 0.12))


def found_rates(ax: Axes, outcome: Outcome) -> None:
    true, found = outcome.rates
    for k, (name, colour) in enumerate(zip(("B to C: 3e7 B", "B to A: 1e4 C"), COLOURS[1:], strict=True)):
        ax.loglog(outcome.ts, true[k], "o", ms=4, color=colour, mec="white", mew=0.5)
        ax.loglog(outcome.ts, found[k], lw=1.6, color=colour, label=name)
    ax.set(xlabel="t", ylabel="per second")
    ax.set_title("The rates, true (dots) and found", loc="left")
    ax.annotate("too slow to matter", (1e-2, 3e-2), color=COLOURS[2], fontsize=9)
    ax.legend(frameon=False, fontsize=9)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"loss: {outcome.losses[0]:.3g} before, {outcome.losses[-1]:.3g} after {len(outcome.losses)} iterations")
    print(f"the conservation law held to {outcome.violation:.1e} in all of them")
    print(f"wrote {outcome.picture}")
