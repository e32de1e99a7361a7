"""An anharmonic oscillator's force, found by a tensor product layer.

x'' = -(k x + a x^3 + b x' + c x'^3) is watched once; the force is a sum of products of Legendre polynomials in x and
x', linear in the weights to be found. The example of DiffEqFlux.jl's tutorial on its TensorLayer: start from a rough
guess (the linear term alone), and fit the trajectory.

    python examples/tensor_layer_oscillator.py --out runs/oscillator
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import GREY, INK, ROSE, STYLE, out_dir, save
from torch import Tensor, nn

import pydiffeqflux as pdf

K, A, B, C = 1.0, 0.1, 0.1, 0.1
SPAN = (0.0, 10.0)
TIMES = torch.linspace(*SPAN, 81, dtype=torch.float64)
START = torch.tensor([2.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)
TERMS = 6
#: Legendre polynomials are at home on [-1, 1].
SCALE = 2.5


def force(x: Tensor, v: Tensor) -> Tensor:
    return -(K * x + A * x**3 + B * v + C * v**3)


class Force(nn.Module):
    """The layer as a function of position and velocity."""

    def __init__(self) -> None:
        super().__init__()
        bases = [pdf.LegendreBasis(TERMS), pdf.LegendreBasis(TERMS)]
        self.layer = pdf.TensorProductLayer(bases, 1, init=nn.init.zeros_).double()

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        return self.layer(torch.cat([x, v], -1) / SCALE)

    def guess(self) -> None:
        """The linear spring alone: P_1(x / SCALE) is x / SCALE."""
        with torch.no_grad():
            self.layer.weight[0, TERMS] = -K * SCALE


@dataclass
class Outcome:
    losses: list[float]
    #: Root mean square errors: of the guess's and the fit's position, and of the force on the path.
    before: float
    after: float
    force: float
    picture: Path


def train(model: pdf.SecondOrderNeuralODE, data: Tensor, iterations: int) -> list[float]:
    losses: list[float] = []
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        x, v = model(*START)
        weight = model.model.layer.weight
        value = (torch.cat([x, v], -1) - data).square().mean() + 1e-8 * weight.square().sum()
        value.backward()
        losses.append(value.item())
        return value

    optimiser.step(loss)
    return losses


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Fit (fewer iterations when ``quick``), draw ``tensor_layer_oscillator.png`` into ``out_dir``."""
    torch.manual_seed(0)
    truth = pdf.SecondOrderNeuralODE(force, SPAN, "vern7", saveat=TIMES, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        x, v = truth(*START)
    model = pdf.SecondOrderNeuralODE(Force(), SPAN, "rk4", saveat=TIMES, dense=False)
    model.model.guess()
    with torch.no_grad():
        first = model(*START)[0]
    losses = train(model, torch.cat([x, v], -1), 6 if quick else 80)
    with torch.no_grad():
        last = model(*START)[0]
        wrong = model.model(x, v) - force(x, v)
    picture = Path(out_dir) / "tensor_layer_oscillator.png"
    draw(picture, x, v, first, last, model.model, losses)
    rms = lambda z: float(z.square().mean().sqrt())  # noqa: E731
    return Outcome(losses, rms(first - x), rms(last - x), rms(wrong), picture)


def draw(path: Path, x: Tensor, v: Tensor, first: Tensor, last: Tensor, model: Force, losses: list[float]) -> None:
    with plt.rc_context(STYLE):
        fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained", width_ratios=(1.2, 1.2, 0.9))
        axes[0].plot(TIMES, first, color=GREY, ls="--", lw=1.6, label="linear spring, the guess")
        axes[0].plot(TIMES, last, color=ROSE, lw=2, label="fitted")
        axes[0].plot(TIMES[::3], x[::3], "o", color=INK, ms=4, label="data")
        axes[0].set(xlabel="t", title="Position")
        axes[0].legend(frameon=False)
        side = torch.linspace(-2.2, 2.2, 60, dtype=torch.float64)
        at, speed = torch.meshgrid(side, side, indexing="xy")
        with torch.no_grad():
            found = model(at.reshape(-1, 1), speed.reshape(-1, 1)).reshape(at.shape)
        wrong = (found - force(at, speed)).abs().clamp_min(1e-6).log10()
        shown = axes[1].contourf(side, side, wrong, levels=12, cmap="viridis_r")
        fig.colorbar(shown, ax=axes[1], label="log10 of the force's error")
        axes[1].plot(x, v, color=ROSE, lw=2)
        axes[1].set(xlabel="x", ylabel="x'", title="Right where the data were (line)")
        axes[2].semilogy(losses, color=INK, lw=1.4)
        axes[2].set(xlabel="evaluation", title="Loss")
        save(fig, path)


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"position off by {outcome.before:.3g} before, {outcome.after:.3g} after; force off by {outcome.force:.3g}")
    print(f"wrote {outcome.picture}")
