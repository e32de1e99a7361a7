"""Every deterministic layer on the Julia backend against the native one: values, and gradients of everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import NonFiniteError, SingularMassError, UnsupportedError, UntraceableError

pytestmark = pytest.mark.julia

D = torch.float64
SPAN = (0.0, 1.0)
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
PATH: dict[str, Any] = {**TIGHT, "saveat": [0.5, 1.0]}
#: One algorithm on both sides, so that what differs is the engine.
GAUSS: dict[str, Any] = {"sensealg": "GaussAdjoint"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def mlp(inputs: int, outputs: int, hidden: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).to(D)


def start(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape, dtype=D)).requires_grad_()


def both(layer: Callable[[str], Callable[..., Tensor]], modules: list[nn.Module], *inputs: Tensor) -> None:
    """The layer of each backend gives the same, and so do its gradients in the inputs and the modules' parameters."""
    wanted = [x for x in inputs if x.requires_grad] + [p for m in modules for p in m.parameters()]
    found = {}
    for backend in ("torch", "julia"):
        out = layer(backend)(*inputs)
        weights = torch.linspace(0.5, 1.5, out.numel(), dtype=D).reshape(out.shape)
        grads = torch.autograd.grad((weights * out).sum(), wanted, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, wanted, strict=True)]
        found[backend] = out.detach(), filled
    (native, to_native), (julia, to_julia) = found["torch"], found["julia"]
    assert float((native - julia).abs().max()) < 1e-8 * (1 + float(native.abs().max()))
    for one, other in zip(to_native, to_julia, strict=True):
        assert float((one - other).abs().max()) < 1e-6 * (1 + float(one.abs().max()))


class Driven(nn.Module):
    """A model of time and state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(3, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, torch.cos(3 * t).expand(*y.shape[:-1], 1)], -1))


class Pushed(nn.Module):
    """An acceleration that depends on time, place and velocity."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 2)

    def forward(self, t: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return self.net(torch.cat([u, v, torch.cos(3 * t).expand(*u.shape[:-1], 1)], -1))


# -- layers with an ODE inside --------------------------------------------------------------------


@pytest.mark.parametrize("model", [lambda: mlp(2, 2), Driven], ids=["autonomous", "driven"])
def test_neural_ode(model: Callable[[], nn.Module]) -> None:
    net = model()
    both(lambda backend: pdf.NeuralODE(net, SPAN, backend=backend, **PATH, **GAUSS), [net], start(3, 2))


def test_neural_ode_with_trained_ends() -> None:
    net, end = mlp(2, 2), torch.tensor(0.7, dtype=D, requires_grad=True)
    both(lambda backend: lambda y, t: pdf.NeuralODE(net, (0.0, t), backend=backend, **TIGHT)(y), [net], start(2), end)


def test_second_order() -> None:
    net = Pushed()

    def layer(backend: str) -> Callable[..., Tensor]:
        node = pdf.SecondOrderNeuralODE(net, SPAN, backend=backend, **PATH, **GAUSS)
        return lambda u, v: torch.cat(node(u, v), -1)

    both(layer, [net], start(3, 2), start(3, 2))


@pytest.mark.parametrize("kind", ["hermite", "cubic", "linear"])
def test_neural_cde(kind: str) -> None:
    """The gradient reaches the observations, too, through a spline whose coefficients depend on one another."""
    net = nn.Sequential(mlp(2, 6), nn.Tanh())
    times, values = torch.linspace(0, 1, 6, dtype=D), start(3, 6, 3)

    def layer(backend: str) -> Callable[..., Tensor]:
        node = pdf.NeuralCDE(net, SPAN, backend=backend, tstops=times[1:-1], **TIGHT)
        return lambda z, x: node(z, pdf.SplineControl(times, x, kind))

    both(layer, [net], start(3, 2), values)


def test_augmented() -> None:
    net = mlp(4, 4)
    both(lambda backend: pdf.AugmentedNeuralODE(net, SPAN, 2, backend=backend, **PATH, **GAUSS), [net], start(3, 2))


def test_universal() -> None:
    net = mlp(2, 2)
    known = lambda t, y: torch.stack([y[..., 1], -torch.sin(y[..., 0]) * torch.cos(t)], -1)  # noqa: E731
    both(lambda backend: pdf.UniversalODE(known, net, SPAN, backend=backend, **PATH), [net], start(3, 2))


# -- layers that take derivatives inside ------------------------------------------------------------


@pytest.mark.parametrize("regularize", [False, True], ids=["plain", "regularised"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_ffjord(trace: str, regularize: bool) -> None:
    net = Driven()

    def layer(backend: str) -> Callable[..., Tensor]:
        flow = pdf.FFJORD(net, SPAN, 2, trace=trace, seed=3, regularize=regularize, backend=backend, **TIGHT, **GAUSS)
        return lambda x: torch.stack(flow(x)[: 3 if regularize else 1])

    both(layer, [net], start(3, 2))


def test_ffjord_backwards() -> None:
    net = mlp(2, 2)
    both(lambda backend: pdf.FFJORD(net, SPAN, 2, backend=backend, **TIGHT).inverse, [net], start(3, 2))


@pytest.mark.parametrize("separable", [False, True], ids=["general", "separable"])
def test_hamiltonian(separable: bool) -> None:
    net = pdf.SeparableHamiltonian(mlp(1, 1), mlp(1, 1)) if separable else mlp(2, 1)
    field = pdf.HamiltonianNN(net)
    both(lambda backend: pdf.NeuralODE(field, SPAN, backend=backend, **PATH, **GAUSS), [net], start(3, 2))


def test_a_hamiltonian_is_conserved() -> None:
    """Boltz's own field has H's derivative in q without its sign, and does not."""
    field = pdf.HamiltonianNN(mlp(2, 1))
    y0 = torch.randn(3, 2, dtype=D)
    path = pdf.NeuralODE(field, (0.0, 5.0), "vern7", saveat=1.0, backend="julia", **TIGHT)(y0)
    assert float((field.energy(path) - field.energy(y0)).abs().max()) < 1e-8
    assert float((path[-1] - y0).abs().max()) > 0.1


class Lagrangian(nn.Module):
    """Curved in the velocities, whatever the network."""

    def __init__(self, n: int):
        super().__init__()
        self.n, self.net = n, mlp(2 * n, 1)

    def forward(self, y: Tensor) -> Tensor:
        return 0.1 * self.net(y)[..., 0] + 0.5 * y[..., self.n :].square().sum(-1)


@pytest.mark.parametrize("n", [1, 3])
def test_lagrangian(n: int) -> None:
    net = Lagrangian(n)
    field = pdf.LagrangianNN(net)
    both(lambda backend: pdf.NeuralODE(field, SPAN, backend=backend, **PATH, **GAUSS), [net], start(3, 2 * n))


def test_a_lagrangian_without_masses() -> None:
    """The native backend, which looks at values, and Julia, which only sees that they are no numbers."""
    field = pdf.LagrangianNN(lambda y: y[..., 0] ** 2 + 0 * y[..., 1])
    y0 = torch.ones(2, dtype=D)
    with pytest.raises(SingularMassError):
        pdf.NeuralODE(field, SPAN, backend="torch")(y0)
    with pytest.raises((SingularMassError, NonFiniteError)):
        pdf.NeuralODE(field, SPAN, backend="julia")(y0)


def test_a_lagrangian_of_too_many_masses() -> None:
    field = pdf.LagrangianNN(lambda y: 0.5 * (y[..., 17:] ** 2).sum(-1) - 0.5 * (y[..., :17] ** 2).sum(-1))
    with pytest.raises(UntraceableError, match="17 unknowns is too large"):
        pdf.NeuralODE(field, SPAN, backend="julia")(torch.ones(34, dtype=D))


# -- bases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chebyshev", "legendre", "polynomial", "fourier", "sine", "cosine"])
def test_tensor_products(name: str) -> None:
    layer = pdf.TensorProductLayer([(name, 3), (name, 4)], 2, init=lambda w: nn.init.normal_(w, std=0.1)).to(D)
    both(lambda backend: pdf.NeuralODE(layer, SPAN, backend=backend, **PATH, **GAUSS), [layer], start(3, 2, scale=0.3))


@pytest.mark.parametrize("kind", ["cubic", "hermite", "quadratic"])
def test_splines(kind: str) -> None:
    """Of the time, so that solvers can be told where the spline's pieces meet."""
    spline = pdf.SplineLayer((2,), 0.0, 1.0, 0.25, kind).to(D)
    func = lambda t, y: -y * spline(t)  # noqa: E731
    stops = [0.25, 0.5, 0.75]
    both(
        lambda backend: pdf.NeuralODE(func, SPAN, backend=backend, tstops=stops, saveat=0.25, **TIGHT),
        [spline],
        start(3, 2),
    )


# -- training without, or with many, solves ---------------------------------------------------------


@pytest.mark.parametrize("model", [lambda: mlp(2, 2), Driven], ids=["autonomous", "driven"])
def test_multiple_shooting(model: Callable[[], nn.Module]) -> None:
    net = model()
    t, data = torch.linspace(0, 2, 9, dtype=D), torch.randn(9, 2, dtype=D)
    both(
        lambda backend: lambda: pdf.multiple_shoot(net, data, t, group_size=4, backend=backend, **TIGHT).loss,
        [net],
    )


def test_steady_state() -> None:
    """The search runs in Julia; the implicit gradient is the root's, however it was found."""
    net = mlp(2, 2)

    def layer(backend: str) -> Callable[..., Tensor]:
        root = pdf.SteadyState(lambda u, a: net(u) - 3 * u + a, "ode", rtol=1e-10, atol=1e-10, backend=backend)
        return lambda a: root(torch.zeros_like(a), a)

    both(layer, [net], start(3, 2))


def test_options_that_julia_has_not() -> None:
    node = pdf.NeuralODE(mlp(2, 2), SPAN, "gl4", backend="julia", dt=0.1)
    with pytest.raises(UnsupportedError, match="does not exist in OrdinaryDiffEq"):
        node(torch.ones(3, 2, dtype=D))
    node = pdf.NeuralODE(mlp(2, 2), SPAN, "velocity_verlet", backend="julia", dt=0.1)
    with pytest.raises(UnsupportedError, match="does not exist in OrdinaryDiffEq"):
        node(torch.ones(3, 2, dtype=D))
