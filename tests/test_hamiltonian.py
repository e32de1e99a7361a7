"""Hamiltonian and Lagrangian networks: fields against Hamilton's and Lagrange's equations, energy kept, training."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, PhaseSpaceError, ShapeError, SingularMassError

D = torch.float64


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def net(features: int, width: int = 16) -> nn.Sequential:
    layers = nn.Linear(features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    return nn.Sequential(*layers).double()


def double_pendulum_energy(y: Tensor) -> Tensor:
    """Unit masses and lengths, not separable: q = angles, p = their momenta."""
    a, b, pa, pb = y.unbind(-1)
    c = torch.cos(a - b)
    return (0.5 * pa**2 + pb**2 - pa * pb * c) / (2 - c**2) - 2 * torch.cos(a) - torch.cos(b)


def double_pendulum_lagrangian(y: Tensor) -> Tensor:
    a, b, va, vb = y.unbind(-1)
    return va**2 + 0.5 * vb**2 + va * vb * torch.cos(a - b) + 2 * torch.cos(a) + torch.cos(b)


# -- Hamilton -----------------------------------------------------------------------------------


def test_the_field_is_hamilton_s() -> None:
    """dq/dt = dH/dp, dp/dt = -dH/dq, with both signs."""
    y = torch.randn(5, 2, dtype=D)
    spring = pdf.HamiltonianNN(lambda y: 0.5 * (3.0 * y[..., :1] ** 2 + y[..., 1:] ** 2 / 2.0))
    torch.testing.assert_close(spring(y), torch.stack([y[:, 1] / 2.0, -3.0 * y[:, 0]], -1))
    torch.testing.assert_close(spring(y[0]), spring(y)[0])
    torch.testing.assert_close(spring.energy(y), 0.5 * (3.0 * y[:, 0] ** 2 + y[:, 1] ** 2 / 2.0))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 3, 6)])
def test_the_energy_is_stationary_along_it(shape: tuple[int, ...]) -> None:
    field = pdf.HamiltonianNN(net(6))
    y = torch.randn(shape, dtype=D)
    f = field(y)
    assert f.shape == shape
    h = 1e-5
    slope = (field.energy(y + h * f) - field.energy(y - h * f)) / (2 * h)
    assert slope.shape == shape[:-1]
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-9)
    across = ((field.energy(y + h * y) - field.energy(y - h * y)) / (2 * h)).detach()
    assert float(across.abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["tsit5", "gl4"])
def test_solutions_conserve_the_energy(method: str) -> None:
    field = pdf.HamiltonianNN(net(4))
    y0 = torch.randn(3, 4, dtype=D)
    options: dict[str, Any] = {"dt": 0.1} if method == "gl4" else {"rtol": 1e-9, "atol": 1e-9}
    node = pdf.NeuralODE(field, (0.0, 5.0), method, saveat=1.0, batched=True, **options)
    with torch.no_grad():
        path = node(y0)
        wrong = (field.energy(path) - field.energy(y0)).abs().max()
    assert float((path[-1] - y0).abs().max()) > 0.1
    assert float(wrong) < 1e-7


def test_separable_networks_and_symplectic_methods() -> None:
    """The learnt energy's error swings within bounds that do not grow."""
    energy = pdf.SeparableHamiltonian(net(2), net(2))
    field = pdf.HamiltonianNN(energy)
    y0 = torch.randn(4, 4, dtype=D)
    whole = pdf.HamiltonianNN(lambda y: energy(y))
    assert whole.separable is None
    torch.testing.assert_close(field(y0), whole(y0))
    node = pdf.NeuralODE(field, (0.0, 100.0), "velocity_verlet", dt=0.1, saveat=0.5)
    with torch.no_grad():
        path = node(y0)
        wrong = (field.energy(path) - field.energy(y0)).abs()[1:].reshape(10, -1).amax(1)
    assert float(wrong[-1]) < 1.1 * float(wrong[0]) < 1e-3
    assert len(list(field.parameters())) == 12


def test_kinetic_energy_of_unit_masses() -> None:
    energy = pdf.SeparableHamiltonian(None, lambda q: (q**4).sum(-1, keepdim=True))
    y = torch.randn(3, 4, dtype=D)
    q, p = y.chunk(2, -1)
    torch.testing.assert_close(energy(y), 0.5 * (p**2).sum(-1) + (q**4).sum(-1))
    torch.testing.assert_close(pdf.HamiltonianNN(energy)(y), torch.cat([p, -4 * q**3], -1))


@pytest.mark.parametrize("kind", ["any", "separable", "lagrangian"])
def test_gradients(kind: str) -> None:
    model: Any = net(4, 4) if kind != "separable" else pdf.SeparableHamiltonian(net(2, 4), net(2, 4))
    if kind == "lagrangian":
        inner = model
        layer: nn.Module = pdf.LagrangianNN(lambda y: 0.5 * (y[..., 2:] ** 2).sum(-1, keepdim=True) + 0.1 * inner(y))
    else:
        layer = pdf.HamiltonianNN(model)
    y = torch.randn(2, 4, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(layer, y)
    node = pdf.NeuralODE(layer, (0.0, 0.5), "rk4", dt=0.25)
    parameters = list(model.parameters())
    (grad,) = torch.autograd.grad(node(y).sum(), parameters[0])
    with torch.no_grad():
        for where in ((0, 0), (1, 1)):
            h, ends = 1e-5, []
            for sign in (1, -1):
                parameters[0][where] += sign * h
                ends.append(float(node(y).sum()))
                parameters[0][where] -= sign * h
            assert float(grad[where]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("sensealg", ["gauss", "backsolve", "interpolating", "quadrature", "forward"])
def test_every_sensitivity_algorithm(sensealg: str) -> None:
    field, y0 = pdf.HamiltonianNN(net(2)), torch.randn(3, 2, dtype=D)

    def grads(how: str | None) -> list[Tensor]:
        node = pdf.NeuralODE(field, (0.0, 1.0), sensealg=how, rtol=1e-9, atol=1e-9)
        return list(torch.autograd.grad(node(y0).square().sum(), list(field.parameters()), allow_unused=True))

    for mine, exact in zip(grads(sensealg), grads(None), strict=True):
        if exact is None:  # the last bias shifts the energy, and no motion
            assert mine is None or not mine.any()
        else:
            torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-7)


def test_learns_an_oscillator_s_energy_from_rates() -> None:
    y = 2 * torch.rand(200, 2) - 1
    rates = torch.stack([y[:, 1], -4 * y[:, 0]], -1)
    field = pdf.HamiltonianNN(nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)))
    optimiser = torch.optim.Adam(field.parameters(), lr=0.02)
    losses = []
    for _ in range(200):
        optimiser.zero_grad()
        loss = (field(y) - rates).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


def test_copies_and_inference() -> None:
    field = pdf.HamiltonianNN(net(2))
    y = torch.randn(3, 2, dtype=D)
    for twin in (copy.deepcopy(field), pickle.loads(pickle.dumps(field))):
        assert torch.equal(twin(y), field(y))
    with torch.no_grad():
        assert not field(y).requires_grad
    with torch.inference_mode():
        assert torch.equal(field(y), field(y.clone()))
    torch.testing.assert_close(torch.func.vmap(field)(y), field(y))


# -- Lagrange -----------------------------------------------------------------------------------


def test_lagrange_and_hamilton_describe_the_same_double_pendulum() -> None:
    start = torch.tensor([[1.0, -0.5, 0.3, 0.8], [0.2, 0.4, -1.0, 0.1]], dtype=D)
    q, v = start.chunk(2, -1)
    c = torch.cos(q[:, 0] - q[:, 1])
    p = torch.stack([2 * v[:, 0] + v[:, 1] * c, v[:, 1] + v[:, 0] * c], -1)
    options: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
    lagrange = pdf.LagrangianNN(double_pendulum_lagrangian)
    hamilton = pdf.HamiltonianNN(double_pendulum_energy)
    end = pdf.NeuralODE(lagrange, (0.0, 2.0), "vern7", **options)(start)
    same = pdf.NeuralODE(hamilton, (0.0, 2.0), "vern7", **options)(torch.cat([q, p], -1))
    torch.testing.assert_close(end[:, :2], same[:, :2], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(lagrange.energy(end), lagrange.energy(start), rtol=0, atol=1e-8)
    torch.testing.assert_close(lagrange.energy(start), hamilton.energy(torch.cat([q, p], -1)))
    torch.testing.assert_close(lagrange(start[0]), lagrange(start)[0])


def test_a_lagrangian_is_learnt() -> None:
    """From accelerations of q'' = -4 q; the kinetic energy is learnt with it."""
    y = 2 * torch.rand(100, 2) - 1
    rates = torch.stack([y[:, 1], -4 * y[:, 0]], -1)
    model = nn.Sequential(nn.Linear(2, 32), nn.Softplus(), nn.Linear(32, 1))
    field = pdf.LagrangianNN(lambda y: 0.5 * y[..., 1:] ** 2 + model(y))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (field(y) - rates).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
    with torch.inference_mode():
        assert field(y).shape == y.shape


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [pdf.HamiltonianNN(net(3)), pdf.LagrangianNN(net(3))])
def test_odd_states(layer: nn.Module) -> None:
    for y in (torch.ones(3, dtype=D), torch.ones(2, 5, dtype=D), torch.tensor(1.0, dtype=D)):
        with pytest.raises(PhaseSpaceError, match="must be even"):
            layer(y)
    with pytest.raises(PhaseSpaceError, match="must be even"):
        pdf.NeuralODE(layer, (0.0, 1.0))(torch.ones(3, dtype=D))


@pytest.mark.parametrize("kind", [pdf.HamiltonianNN, pdf.LagrangianNN, lambda n: pdf.SeparableHamiltonian(None, n)])
def test_networks_that_are_no_energy(kind: Any) -> None:
    y = torch.ones(3, 4, dtype=D)
    with pytest.raises(ShapeError, match="one number for each state"):
        kind(lambda y: y)(y)
    if kind is not pdf.LagrangianNN:  # which asks for one state at a time
        with pytest.raises(ShapeError, match="one number for each state"):
            kind(lambda y: (y**2).sum())(y)
    with pytest.raises(InvalidArgumentError, match="not callable"):
        kind(3)
    with pytest.raises(InvalidArgumentError, match=r"takes \(t, y\)"):
        kind(lambda t, y: y)


def test_a_lagrangian_without_masses() -> None:
    with pytest.raises(SingularMassError, match="singular at"):
        pdf.LagrangianNN(lambda y: y[..., 0] * y[..., 1])(torch.ones(2, 2, dtype=D))
