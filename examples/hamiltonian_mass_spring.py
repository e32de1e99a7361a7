"""A mass on a spring: a learnt energy is conserved, a learnt vector field is not.

Two models see the same noisy rates of change of a nonlinear spring, q' = p, p' = -q - q^3. One learns the rates as they
are, the other an energy T(p) + V(q) whose motion has these rates: Greydanus et al., "Hamiltonian neural networks"
(2019). Then both run for about a hundred periods, the second one with a symplectic method.

    python examples/hamiltonian_mass_spring.py --out runs/spring
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import INK, ROSE, STYLE, TEAL, descend, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

START = torch.tensor([1.2, 0.0])


def rates(y: Tensor) -> Tensor:
    q, p = y.chunk(2, -1)
    return torch.cat([p, -q - q**3], -1)


def energy(y: Tensor) -> Tensor:
    q, p = y[..., 0], y[..., 1]
    return 0.5 * p**2 + 0.5 * q**2 + 0.25 * q**4


def network(inputs: int, outputs: int, width: int = 32) -> nn.Sequential:
    layers = nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    return nn.Sequential(*layers)


@dataclass
class Outcome:
    #: Largest deviation of the true energy along each path, relative to its start; over the first and last tenth.
    plain: tuple[float, float]
    hamiltonian: tuple[float, float]
    #: The same of the learnt energy, which the symplectic method is to conserve.
    own: tuple[float, float]
    picture: Path


def train(model: nn.Module, y: Tensor, dy: Tensor, iterations: int) -> None:
    descend(model.parameters(), lambda: (model(y) - dy).square().mean(), iterations, 0.02)


def deviations(values: Tensor) -> tuple[float, float]:
    wrong = (values / values[0] - 1).abs()
    tenth = len(wrong) // 10
    return float(wrong[:tenth].max()), float(wrong[-tenth:].max())


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Train (fewer iterations when ``quick``), draw ``hamiltonian_mass_spring.png`` into ``out_dir``."""
    torch.manual_seed(0)
    y = 3.2 * torch.rand(400, 2) - 1.6
    dy = rates(y) + 0.05 * torch.randn(400, 2)
    plain = network(2, 2)
    hamiltonian = pdf.HamiltonianNN(pdf.SeparableHamiltonian(network(1, 1), network(1, 1)))
    for model in (plain, hamiltonian):
        train(model, y, dy, 200 if quick else 1500)
    end = 50.0 if quick else 500.0
    times = torch.linspace(0, end, 501 if quick else 5001)
    with torch.no_grad():
        first = pdf.NeuralODE(plain, (0.0, end), "dopri5", saveat=times, rtol=1e-6, atol=1e-6)(START)
        second = pdf.NeuralODE(hamiltonian, (0.0, end), "mcate4", saveat=times, dt=0.1, dense=False)(START)
        truth = pdf.solve(pdf.ODEProblem(lambda t, y: rates(y), START, (0.0, end)), "dopri5", saveat=times, rtol=1e-7)
        own = hamiltonian.energy(second) - hamiltonian.energy(torch.zeros(2))
    picture = Path(out_dir) / "hamiltonian_mass_spring.png"
    draw(picture, times, truth.ys, first, second)
    return Outcome(deviations(energy(first)), deviations(energy(second)), deviations(own), picture)


def draw(path: Path, times: Tensor, truth: Tensor, plain: Tensor, hamiltonian: Tensor) -> None:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained", width_ratios=(1, 1, 1.4))
        for ax, states, colour, title in (
            (axes[0], plain, ROSE, "A learnt vector field"),
            (axes[1], hamiltonian, TEAL, "A learnt energy"),
        ):
            ax.plot(truth[:80, 0], truth[:80, 1], color=INK, lw=4, label="truth")
            ax.plot(states[:, 0], states[:, 1], color=colour, lw=0.4)
            ax.set(title=title, xlabel="q", ylabel="p", aspect="equal", xlim=(-1.7, 1.7), ylim=(-2.2, 2.2))
            ax.legend(loc="upper right", frameon=False)
        for states, colour, name in ((plain, ROSE, "vector field"), (hamiltonian, TEAL, "energy")):
            axes[2].plot(times, energy(states) / energy(START), color=colour, lw=0.9, label=f"learnt {name}")
        axes[2].axhline(1.0, color=INK, lw=1.2)
        axes[2].set(title="True energy along the path, over its start", xlabel="t")
        axes[2].legend(frameon=False)
        save(fig, path)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    for name in ("plain", "hamiltonian", "own"):
        first, last = getattr(outcome, name)
        print(f"{name}: energy off by {first:.2%} in the first tenth of the time, by {last:.2%} in the last")
    print(f"wrote {outcome.picture}")
