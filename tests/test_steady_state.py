"""Steady states: roots against known ones and scipy's, gradients by differences, every solver, every failure."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from scipy.optimize import fsolve
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    ConvergenceError,
    InvalidArgumentError,
    InvalidStateError,
    ShapeError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)

D = torch.float64
SOLVERS = ("newton", "anderson", "ode")
LINEAR = ("dense", "gmres")
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class Equilibrium(nn.Module):
    """z = tanh(W z + U x + b), with ||W|| < 1."""

    def __init__(self, hidden: int = 3, features: int = 2):
        super().__init__()
        self.inner = nn.Linear(hidden, hidden, dtype=D)
        self.outer = nn.Linear(features, hidden, dtype=D)
        with torch.no_grad():
            self.inner.weight.mul_(0.6 / torch.linalg.matrix_norm(self.inner.weight, 2))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(z) + self.outer(x))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("batched", [False, True])
def test_deep_equilibrium(solver: str, linear: str, batched: bool) -> None:
    model, x, z0 = Equilibrium(), torch.randn(2, 2, dtype=D), torch.zeros(2, 3, dtype=D)
    layer = pdf.SteadyState(model, solver, form="fixed_point", linear=linear, batched=batched, **TIGHT)
    z = layer(z0, x)
    torch.testing.assert_close(z, model(z, x), rtol=0, atol=1e-9)
    for row in range(2):
        root = fsolve(lambda v, r=row: v - model(torch.tensor(v), x[r]).detach().numpy(), z0[row].numpy(), xtol=1e-13)
        torch.testing.assert_close(z[row].detach(), torch.as_tensor(root), rtol=0, atol=1e-8)
    parameters = dict(layer.named_parameters())
    if solver == "ode" or (linear == "gmres" and batched):  # what differs is only how the root was found
        other = pdf.SteadyState(model, form="fixed_point", **TIGHT)
        mine, theirs = (torch.autograd.grad(f(z0, x).sum(), list(parameters.values())) for f in (layer, other))
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
        return

    def end(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (z0, x))

    assert torch.autograd.gradcheck(end, (x.requires_grad_(), *parameters.values()), atol=1e-5)


@pytest.mark.parametrize("solver", ["newton", "ode"])
def test_a_chemical_steady_state(solver: str) -> None:
    """A -> B -> C with inflow and outflow, by hand: a = q / k1, b = q / k2, c = q / k3."""
    rates = torch.tensor([2.0, 0.5, 1.5], dtype=D, requires_grad=True)

    def reactor(u: Tensor, k: Tensor) -> Tensor:
        flow = k * u
        return torch.cat([torch.ones(1, dtype=D), flow[:2]]) - flow

    u = pdf.SteadyState(reactor, solver, **TIGHT)(torch.zeros(3, dtype=D), rates)
    torch.testing.assert_close(u, 1 / rates)
    (grad,) = torch.autograd.grad(u.sum(), rates)
    torch.testing.assert_close(grad, -1 / rates.detach() ** 2, rtol=1e-7, atol=0)


def test_newton_converges_from_afar_and_stays_where_it_is() -> None:
    layer = pdf.SteadyState(lambda u: torch.atan(u - 1.0), **TIGHT)  # undamped, Newton diverges from here
    torch.testing.assert_close(layer(torch.tensor([4.0], dtype=D)), torch.ones(1, dtype=D))
    calls = 0

    def counted(u: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return u - 1.0

    with torch.no_grad():
        assert float(pdf.SteadyState(counted)(torch.ones(1, dtype=D))) == 1.0
        assert float(pdf.SteadyState(counted, "anderson")(torch.ones(1, dtype=D))) == 1.0
        assert float(pdf.SteadyState(counted, "ode")(torch.ones(1, dtype=D))) == 1.0
    assert calls == 3


def test_the_ode_finds_the_stable_state() -> None:
    """u' = u - u^3 leaves 0 for 1; Newton's method from nearby goes to 0."""
    field = lambda u: u - u**3  # noqa: E731
    start = torch.tensor([0.05], dtype=D)
    assert float(pdf.SteadyState(field, "ode")(start).detach()) == pytest.approx(1.0, abs=1e-5)
    assert float(pdf.SteadyState(field, "newton")(start).detach()) == pytest.approx(0.0, abs=1e-5)
    stiff = pdf.SteadyState(lambda u: -1e6 * (u - 2.0), "ode", method="rodas5p")
    assert float(stiff(start).detach()) == pytest.approx(2.0, abs=1e-5)


def test_shapes_and_no_gradient() -> None:
    layer = pdf.SteadyState(lambda u, a: a - u, batched=True)
    a = torch.randn(4, 2, 3, dtype=D)
    torch.testing.assert_close(layer(torch.zeros(4, 2, 3, dtype=D), a), a)
    with torch.no_grad():
        assert not layer(torch.zeros(4, 2, 3, dtype=D), a.requires_grad_()).requires_grad
    u0 = torch.zeros(4, 2, 3, dtype=D, requires_grad=True)
    layer(u0, a).sum().backward()
    assert u0.grad is None and torch.equal(a.grad, torch.ones_like(a))
    single = pdf.SteadyState(Equilibrium(), form="fixed_point").float()
    assert single(torch.zeros(2, 3), torch.ones(2, 2)).dtype == torch.float32


def test_trains_and_copies() -> None:
    layer = pdf.SteadyState(Equilibrium(8, 1), "anderson", form="fixed_point", batched=True)
    read = nn.Linear(8, 1, dtype=D)
    x = torch.linspace(-2, 2, 30, dtype=D)[:, None]
    optimiser = torch.optim.Adam([*layer.parameters(), *read.parameters()], lr=0.02)
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = (read(layer(x.new_zeros(30, 8), x)) - torch.sin(2 * x)).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x.new_zeros(30, 8), x), layer(x.new_zeros(30, 8), x))
    assert "solver=anderson, form=fixed_point, linear=dense" in repr(layer)


# -- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_states_that_do_not_exist(solver: str) -> None:
    options = {"max_iterations": 20} if solver != "ode" else {"t_max": 1.0}
    with pytest.raises(ConvergenceError, match=f"solver='{solver}' within"):
        pdf.SteadyState(lambda u: 1 + u**2 if solver != "ode" else -0.1 * u, solver, **options)(
            torch.tensor([0.5], dtype=D)
        )


@pytest.mark.parametrize("linear", LINEAR)
def test_states_that_are_not_isolated(linear: str) -> None:
    """u1 + u2 is conserved."""
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    layer = pdf.SteadyState(lambda u, k: k * torch.stack([u[1] - u[0], u[0] - u[1]]), linear=linear)
    if linear == "dense":
        with pytest.raises(ConvergenceError, match="not isolated"):
            layer(torch.tensor([1.0, 0.0], dtype=D), rate)
    root = layer(torch.tensor([1.0, 1.0], dtype=D), rate)  # it is one already; its gradient is not defined
    with pytest.raises(ConvergenceError):
        (root * torch.tensor([1.0, 2.0], dtype=D)).sum().backward()


def test_other_mistakes() -> None:
    field = lambda u: -u  # noqa: E731
    for name, value in (("solver", "newtons"), ("form", "rates"), ("linear", "lu")):
        with pytest.raises(UnknownNameError, match=f"{name}='{value}' is not known"):
            pdf.SteadyState(field, **{name: value})
    with pytest.raises(UnknownOptionError, match=r"SteadyState\(\) takes no argument 'tolerance'"):
        pdf.SteadyState(field, tolerance=1e-3)
    with pytest.raises(InvalidArgumentError, match="only solver='ode'"):
        pdf.SteadyState(field, dt=0.1)
    for name in ("rtol", "atol", "max_iterations", "t_max"):
        with pytest.raises(InvalidArgumentError, match=f"{name}=-1"):
            pdf.SteadyState(field, **{name: -1})
    with pytest.raises(InvalidStateError, match="real floating tensor"):
        pdf.SteadyState(field)(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="must have that shape"):
        pdf.SteadyState(lambda u: u[:1])(torch.ones(2))
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.vmap(pdf.SteadyState(field))(torch.ones(2, 1))
    with pytest.raises(InvalidArgumentError, match="not callable"):
        pdf.SteadyState(3)
