"""Newton and Krylov: training with second derivatives through the solver.

The gradient of a solve by DiscreteAdjoint can be differentiated again: the product of the Hessian with a vector costs
one more backward pass, and no Hessian is ever formed. Newton's equations are solved by conjugate gradients, cut off at
the edge of a trust region or where the curvature is negative (Steihaug 1983; Nocedal & Wright, "Numerical
optimization", algorithms 4.1 and 7.2), and race Adam on the spiral of `spiral_neural_ode.py`: after sixty
iterations of Adam for both, at an equal number of passes through the solver. After SciMLSensitivity's tutorial "Newton
and Hessian-free Newton-Krylov with second order adjoints".

    python examples/newton_krylov.py --out runs/newton
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from _common import INK, ROSE, STYLE, TEAL, descend, out_dir, save
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import pydiffeqflux as pdf

TRUTH = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
START = torch.tensor([2.0, 0.0], dtype=torch.float64)
SPAN = (0.0, 1.5)
TIMES = torch.linspace(*SPAN, 30, dtype=torch.float64)
#: Iterations of Adam before the race.
WARM_UP = 60


class Cubed(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y**3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(Cubed(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    for layer in (net[1], net[3]):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


class Objective:
    """The misfit of a neural ODE as a function of one vector, with its gradient and Hessian-vector products."""

    def __init__(self, net: nn.Module, data: Tensor):
        self.parameters = list(net.parameters())
        self.node = pdf.NeuralODE(net, SPAN, "rk4", dt=0.05, saveat=TIMES, sensealg=pdf.DiscreteAdjoint())
        self.data = data
        #: Passes through the solver, forwards and backwards counted alike.
        self.passes = 0

    def loss(self) -> Tensor:
        self.passes += 1
        return (self.node(START) - self.data).square().mean()

    def at(self, x: Tensor) -> float:
        vector_to_parameters(x, self.parameters)
        with torch.no_grad():
            return self.loss().item()

    def expand(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The gradient at ``x``, and the product of the Hessian there with a vector."""
        vector_to_parameters(x, self.parameters)
        pieces = torch.autograd.grad(self.loss(), self.parameters, create_graph=True)
        gradient = torch.cat([piece.reshape(-1) for piece in pieces])
        self.passes += 1

        def hessian_times(v: Tensor) -> Tensor:
            self.passes += 2  # backwards through the solve and through its backward pass
            found = torch.autograd.grad(gradient, self.parameters, v, retain_graph=True)
            return torch.cat([piece.reshape(-1) for piece in found])

        return gradient.detach(), hessian_times


def to_the_edge(p: Tensor, d: Tensor, radius: float) -> Tensor:
    """Where ``p + s d`` leaves the trust region, s > 0."""
    a, b, c = d @ d, 2 * (p @ d), p @ p - radius**2
    return p + (-b + (b * b - 4 * a * c).sqrt()) / (2 * a) * d


def steihaug(
    gradient: Tensor, hessian_times: Callable[[Tensor], Tensor], radius: float, most: int
) -> tuple[Tensor, Tensor]:
    """A step within the trust region and the change of the loss that the quadratic model promises for it."""
    p, r = torch.zeros_like(gradient), gradient.clone()
    hp = torch.zeros_like(p)  # the Hessian times p, put together on the way
    d, enough = -r, min(0.5, float(gradient.norm()) ** 0.5) * gradient.norm()
    for _ in range(most):
        hd = hessian_times(d)
        curvature = d @ hd
        step = (r @ r) / curvature
        if curvature <= 0 or (p + step * d).norm() >= radius:
            edge = to_the_edge(p, d, radius)
            hp = hp + (edge - p).norm() / d.norm() * hd
            p = edge
            break
        p, hp = p + step * d, hp + step * hd
        new = r + step * hd
        d = -new + (new @ new) / (r @ r) * d
        r = new
        if r.norm() < enough:
            break
    return p, gradient @ p + 0.5 * (p @ hp)


def newton(objective: Objective, iterations: int, most: int = 30) -> list[tuple[int, float]]:
    """Passes through the solver and loss, after each iteration."""
    x, radius = parameters_to_vector(objective.parameters).detach(), 1.0
    loss = objective.at(x)
    path = [(objective.passes, loss)]
    for _ in range(iterations):
        gradient, hessian_times = objective.expand(x)
        p, promised = steihaug(gradient, hessian_times, radius, most)
        tried = objective.at(x + p)
        kept = (loss - tried) / -float(promised)
        radius = 0.25 * float(p.norm()) if kept < 0.25 else min(2 * radius, 100.0) if kept > 0.75 else radius
        if tried < loss:
            x, loss = x + p, tried
        path.append((objective.passes, loss))
    vector_to_parameters(x, objective.parameters)
    return path


@dataclass
class Outcome:
    #: Passes through the solver and loss, by Newton's method.
    newton: list[tuple[int, float]]
    #: The losses of Adam, at as many passes altogether.
    adam: list[float]
    #: How far the Hessian's product with a vector is from a difference of gradients, relatively.
    off: float
    picture: Path


def against_differences(objective: Objective, step: float = 1e-5) -> float:
    x = parameters_to_vector(objective.parameters).detach()
    v = torch.randn_like(x)
    product = objective.expand(x)[1](v)
    up, down = (objective.expand(x + s * step * v)[0] for s in (1, -1))
    vector_to_parameters(x, objective.parameters)
    return float((product - (up - down) / (2 * step)).norm() / product.norm())


def main(out_dir: str | Path, quick: bool = False) -> Outcome:
    """Race (shorter when ``quick``), draw ``newton_krylov.png`` into ``out_dir``."""
    truth = pdf.ODEProblem(lambda t, y: y**3 @ TRUTH, START, SPAN)
    data = pdf.solve(truth, "vern7", saveat=TIMES, rtol=1e-8, atol=1e-8).ys
    net = network()
    objective = Objective(net, data)
    off = against_differences(objective)
    descend(objective.parameters, objective.loss, WARM_UP, 0.05)
    rival = Objective(copy.deepcopy(net), data)
    objective.passes = 0
    path = newton(objective, 15 if quick else 80)
    adam = descend(rival.parameters, rival.loss, path[-1][0] // 2, 0.05)
    with torch.no_grad():
        curves = [pdf.NeuralODE(o.node.model, SPAN, "tsit5").solve(START) for o in (objective, rival)]
    return Outcome(path, adam, off, draw(out_dir, data, curves, path, adam))


def draw(
    out_dir: str | Path, data: Tensor, curves: list[pdf.Solution], path: list[tuple[int, float]], adam: list[float]
) -> Path:
    with plt.rc_context(STYLE):
        fig, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4), layout="constrained", width_ratios=(1.4, 1))
        left.semilogy([2 * (k + 1) for k in range(len(adam))], adam, color=TEAL, lw=1.0, label="Adam, one cycle")
        left.semilogy(*zip(*path, strict=True), "o-", color=ROSE, ms=3.5, lw=1.4, label="Newton and Krylov")
        left.set(xlabel="passes through the solver", ylabel="mean squared error", xlim=(0, path[-1][0]))
        left.set_title("Loss against work")
        left.legend()
        left.grid(axis="y", color="#e5e5e5", lw=0.7)
        fine = torch.linspace(*SPAN, 400, dtype=torch.float64)
        for curve, colour, name in zip(curves, (ROSE, TEAL), ("Newton and Krylov", "Adam"), strict=True):
            ys = curve(fine).detach()
            right.plot(ys[:, 0], ys[:, 1], color=colour, lw=1.8, label=name)
        right.plot(data[:, 0], data[:, 1], "o", color=INK, ms=4.5, mec="white", mew=0.7, label="data")
        right.set(xlabel="$y_1$", ylabel="$y_2$", aspect="equal")
        right.set_title("Both, after training")
        right.legend(loc="center")
        return save(fig, Path(out_dir) / "newton_krylov.png")


if __name__ == "__main__":
    outcome = main(out_dir(__doc__))
    print(f"Hessian times vector, against differences of gradients: {outcome.off:.1e} off")
    print(f"loss {outcome.newton[0][1]:.3g} -> {outcome.newton[-1][1]:.3g} in {outcome.newton[-1][0]} passes;")
    print(f"Adam {outcome.adam[-1]:.3g} in as many; wrote {outcome.picture}")
