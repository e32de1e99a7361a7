"""Symplectic methods: orders measured, symplecticity by its definition, energy over long times, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import methods
from pydiffeqflux.errors import NotSeparableError, PhaseSpaceError, StepSizeRequiredError, UnsupportedError

D = torch.float64
ORDERS = {
    "symplectic_euler": 1,
    "velocity_verlet": 2,
    "leapfrog": 2,
    "ruth3": 3,
    "candyroz4": 4,
    "mcate4": 4,
    "yoshida6": 6,
    "kahanli8": 8,
}
#: Forces and velocities a step, without dense output.
COSTS = {"symplectic_euler": 2, "velocity_verlet": 2, "leapfrog": 3, "ruth3": 6, "candyroz4": 7, "mcate4": 8}
COSTS |= {"yoshida6": 14, "kahanli8": 34}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pendulum(t: Any, y: Tensor) -> Tensor:
    q, p = y.chunk(2, -1)
    return torch.cat([p, -torch.sin(q)], -1)


def driven(t: Tensor, y: Tensor) -> Tensor:
    """Both halves depend on time, so that each half's clock matters; the velocity is not linear in p."""
    q, p = y.chunk(2, -1)
    return torch.cat([p + 0.2 * torch.sin(2 * t) * p**2, -torch.sin(q) + 0.3 * torch.cos(3 * t)], -1)


def driven_linear(t: Tensor, y: Tensor) -> Tensor:
    q, p = y.chunk(2, -1)
    return torch.cat([p, -torch.sin(q) + 0.3 * torch.cos(3 * t)], -1)


def energy(y: Tensor) -> Tensor:
    return 0.5 * y[..., 1] ** 2 - torch.cos(y[..., 0])


START = torch.tensor([1.0, 0.2], dtype=D)


def test_all_of_them_are_here() -> None:
    kinds = [kind for kind in methods.CATALOGUE if issubclass(kind, pdf.Symplectic)]
    assert {kind.name: kind.order for kind in kinds} == ORDERS
    assert not any(kind.adaptive or kind.implicit for kind in kinds)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("func", [driven, driven_linear], ids=["any", "linear velocity"])
def test_the_order_of_convergence_is_the_method_s(name: str, func: Callable[..., Tensor]) -> None:
    problem = pdf.ODEProblem(func, START, (0.0, 2.0))
    exact = pdf.solve(problem, "vern9", rtol=1e-14, atol=1e-14, saveat=[2.0]).ys[-1]
    steps = (20, 40, 80) if ORDERS[name] < 8 else (6, 8, 12)
    errors = [float((pdf.solve(problem, name, dt=2 / n, saveat=[2.0]).ys[-1] - exact).norm()) for n in steps]
    ratios = zip(pairwise(errors), pairwise(steps), strict=True)
    measured = [math.log(a / b) / math.log(m / n) for (a, b), (n, m) in ratios]
    expected = 3 if name == "mcate4" and func is driven else ORDERS[name]
    assert measured[-1] == pytest.approx(expected, abs=0.25)


@pytest.mark.parametrize("name", ORDERS)
def test_steps_are_symplectic(name: str) -> None:
    """The flow map's Jacobian M satisfies M' J M = J; that of a Runge-Kutta method does not."""
    unit = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=D)

    def defect(method: str) -> float:
        def end(y: Tensor) -> Tensor:
            return pdf.solve(pdf.ODEProblem(pendulum, y, (0.0, 3.0)), method, dt=0.3, saveat=[3.0]).ys[-1]

        m = torch.autograd.functional.jacobian(end, START)
        return float((m.T @ unit @ m - unit).abs().max())

    assert defect(name) < 1e-13
    assert defect("rk4") > 1e-5


@pytest.mark.parametrize("name", ORDERS)
def test_energy_does_not_drift(name: str) -> None:
    """Its error swings but does not grow: over the last of ten stretches it is what it is over the first."""
    dt = 0.2
    problem = pdf.ODEProblem(pdf.SeparableField(None, lambda t, q: -torch.sin(q)), START, (0.0, 300.0))
    with torch.no_grad():
        path = pdf.solve(problem, name, dt=dt, dense=False).ys
    wrong = (energy(path) - energy(START)).abs().reshape(-1)[1:].reshape(10, -1).amax(1)
    slack = 1e-11  # rounding walks
    assert float(wrong[-1]) < 1.05 * float(wrong[0]) + slack
    assert float(wrong.max()) < 0.6 * dt ** ORDERS[name] + slack


def test_energy_drifts_with_a_method_that_is_not_symplectic() -> None:
    """What the test above would show."""
    with torch.no_grad():
        path = pdf.solve(pdf.ODEProblem(pendulum, START, (0.0, 300.0)), "rk4", dt=0.2, dense=False).ys
    drift = (energy(path) - energy(START)).abs()[1:].reshape(10, -1).amax(1)
    assert float(drift[-1]) > 8 * float(drift[0])


@pytest.mark.parametrize("name", ORDERS)
def test_what_a_step_costs(name: str) -> None:
    field = pdf.SeparableField(None, lambda t, q: -torch.sin(q))
    stats = pdf.solve(pdf.ODEProblem(field, START, (0.0, 1.0)), name, dt=0.1, dense=False).stats
    assert (stats.naccept, stats.nf) == (10, 10 * COSTS[name] + 1)  # and one to start with


# -- forms of the state and of the right-hand side ----------------------------------------------


class Chain(nn.Module):
    """Three masses on springs, in halves."""

    def __init__(self) -> None:
        super().__init__()
        self.stiffness = nn.Parameter(torch.tensor([1.0, 2.0, 0.5], dtype=D))

    def forward(self, t: Any, q: Tensor) -> Tensor:
        return -self.stiffness * q**3


@pytest.mark.parametrize("name", ["velocity_verlet", "candyroz4"])
def test_all_forms_agree(name: str) -> None:
    chain = Chain()
    field = pdf.SeparableField(lambda t, p: p / 2, chain)
    q, p = torch.randn(4, 3, dtype=D), torch.randn(4, 3, dtype=D)
    y0 = torch.cat([q, p], -1)

    def end(func: Any, start: Any, **options: Any) -> Any:
        problem = pdf.ODEProblem(func, start, (0.0, 1.0), batched=options.pop("batched", False))
        return pdf.solve(problem, name, dt=0.1, saveat=[1.0], **options).ys

    expected = end(field, y0)[-1]
    torch.testing.assert_close(end(lambda t, y: field(t, y), y0)[-1], expected)  # as a whole
    for batched in (False, True):
        for func in (field, lambda t, y: field(t, y)):
            got = end(func, (q, p), batched=batched)
            torch.testing.assert_close(torch.cat(got, -1)[-1], expected)
    assert isinstance(end(field, [q, p]), list)
    rows = end(field, y0, batched=True, per_sample=True)[-1]
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(end(field, y0, batched=True)[-1], expected)
    assert [n for n, _ in field.named_parameters()] == ["force.stiffness"]


def test_backwards_in_time() -> None:
    """Symmetric methods are their own inverses."""
    for name in ("velocity_verlet", "leapfrog", "candyroz4", "yoshida6"):
        end = pdf.solve(pdf.ODEProblem(pendulum, START, (0.0, 2.0)), name, dt=0.2, saveat=[2.0]).ys[-1]
        back = pdf.solve(pdf.ODEProblem(pendulum, end, (2.0, 0.0)), name, dt=0.2, saveat=[0.0]).ys[-1]
        torch.testing.assert_close(back, START, rtol=0, atol=1e-14)


def test_dense_output_and_events() -> None:
    problem = pdf.ODEProblem(pendulum, START, (0.0, 6.0))
    exact = pdf.solve(problem, "vern9", rtol=1e-12, atol=1e-12)
    sol = pdf.solve(problem, "mcate4", dt=0.05)
    times = torch.linspace(0, 6, 57, dtype=D)
    torch.testing.assert_close(sol(times), exact(times), rtol=0, atol=1e-6)
    falls = pdf.Event(lambda t, y: y[0])
    t = [float(pdf.solve(problem, m, event=falls, dt=0.02).events[0].ts[0].detach()) for m in ("mcate4", "rk4")]
    assert t[0] == pytest.approx(t[1], abs=1e-6)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
def test_gradients(name: str) -> None:
    t1 = torch.tensor(0.9, dtype=D, requires_grad=True)
    rate = torch.tensor(1.3, dtype=D, requires_grad=True)
    y0 = START.clone().requires_grad_()

    def path(y0: Tensor, rate: Tensor, t1: Tensor) -> Tensor:
        field = pdf.SeparableField(None, lambda t, q: -rate * torch.sin(q))
        return pdf.solve(pdf.ODEProblem(field, y0, (0.0, t1)), name, dt=0.2, saveat=[0.35, 0.7]).ys

    assert torch.autograd.gradcheck(path, (y0, rate, t1))
    assert torch.autograd.gradgradcheck(path, (y0, rate, t1))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "sensealg",
    [
        pdf.DiscreteAdjoint(checkpoints="sqrt"),
        pdf.GaussAdjoint(),
        pdf.QuadratureAdjoint(reltol=1e-8, abstol=1e-10),
        pdf.GaussAdjoint(method="vern7", rtol=1e-9, atol=1e-9),
        pdf.BacksolveAdjoint(method="vern7", rtol=1e-9, atol=1e-9),
    ],
    ids=["sqrt", "gauss", "quadrature", "gauss vern7", "backsolve vern7"],
)
def test_adjoints(sensealg: pdf.SenseAlg, whole: bool) -> None:
    """The adjoint of a separable system is separable: symplectic methods solve it, too."""
    chain = Chain()
    field = pdf.SeparableField(None, chain)
    func = (lambda t, y: field(t, y)) if whole else field

    def grads(how: pdf.SenseAlg) -> tuple[Tensor, ...]:
        y0 = torch.linspace(0.5, 1.0, 6, dtype=D).requires_grad_()
        problem = pdf.ODEProblem(func, y0, (0.0, 1.0))
        ys = pdf.solve(problem, "yoshida6", dt=0.02, saveat=[0.5, 1.0], sensealg=how).ys
        return torch.autograd.grad(ys.square().sum(), (y0, chain.stiffness))

    for mine, exact in zip(grads(sensealg), grads(pdf.DiscreteAdjoint()), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)


def test_vmap() -> None:
    y0 = torch.randn(3, 2, dtype=D)

    def end(y: Tensor) -> Tensor:
        return pdf.solve(pdf.ODEProblem(pendulum, y, (0.0, 1.0)), "leapfrog", dt=0.1, saveat=[1.0]).ys[-1]

    torch.testing.assert_close(torch.func.vmap(end)(y0), end(y0))


# -- mistakes -----------------------------------------------------------------------------------


def run(func: Any, y0: Any, **options: Any) -> Any:
    return pdf.solve(pdf.ODEProblem(func, y0, (0.0, 1.0)), "velocity_verlet", **{"dt": 0.1, **options})


def test_odd_states() -> None:
    for y0 in (torch.ones(3), torch.ones(2, 5), torch.tensor(1.0)):
        with pytest.raises(PhaseSpaceError, match=r"\(q, p\) are the two halves"):
            run(lambda t, y: y, y0)
    for pair in ((torch.ones(2), torch.ones(3)), (torch.ones(2),), {"q": torch.ones(2), "p": torch.ones(2)}):
        with pytest.raises(PhaseSpaceError, match=r"a pair \(q, p\) of one shape"):
            run(lambda t, y: y, pair)
    with pytest.raises(PhaseSpaceError, match=r"shape \(3,\)"):
        pdf.SeparableField(None, lambda t, q: -q)(0.0, torch.ones(3))


def test_systems_that_are_not_separable() -> None:
    with pytest.raises(NotSeparableError, match=r"dq/dt depends on q.*'implicit_midpoint'"):
        run(lambda t, y: torch.stack([y[1] + 0.1 * y[0], -y[0]]), torch.ones(2))
    with pytest.raises(NotSeparableError, match="dp/dt depends on p"):
        run(lambda t, y: torch.stack([y[1], -y[0] - 0.1 * y[1]]), torch.ones(2))  # friction
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    with pytest.raises(NotSeparableError):
        pdf.NeuralODE(pdf.HamiltonianNN(net), (0.0, 1.0), "velocity_verlet", dt=0.1)(torch.ones(2))


@pytest.mark.parametrize("sensealg", ["backsolve", "interpolating", "forward"])
def test_adjoints_that_have_no_halves(sensealg: str) -> None:
    with pytest.raises(UnsupportedError, match=r"no halves as method=velocity_verlet needs them"):
        run(pendulum, START.clone().requires_grad_(), sensealg=sensealg)


def test_steps_have_to_be_given() -> None:
    with pytest.raises(StepSizeRequiredError, match="velocity_verlet"):
        pdf.solve(pdf.ODEProblem(pendulum, START, (0.0, 1.0)), "velocity_verlet")
