"""Fixed-step methods: orders measured, tableaus against their conditions, gradients, and what happens on failure."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux import methods
from pydiffeqflux.backends.eager.fixed import fixed_stepper
from pydiffeqflux.backends.eager.fixed.adams import Adams, Corrector, weights
from pydiffeqflux.backends.eager.fixed.tableau import FixedImplicit, ImplicitTableau
from pydiffeqflux.errors import ConvergenceError, GradientError, UnsupportedError

D = torch.float64
ORDERS = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "abm4": 4,
    "implicit_euler": 1,
    "implicit_midpoint": 2,
    "trapezoid": 2,
    "radauiia3": 3,
    "radauiia5": 5,
    "gl4": 4,
    "gl6": 6,
    "sdirk2": 2,
    "trbdf2": 2,
}
IMPLICIT = [name for name in ORDERS if methods.resolve(name).implicit]
#: Module and name of each implicit tableau, and the stage order that its simplifying conditions C(q) give.
TABLEAUS = {
    "implicit_euler.TABLEAU": 1,
    "implicit_midpoint.TABLEAU": 1,
    "trapezoid.TABLEAU": 2,
    "radau_iia.RADAU3": 2,
    "radau_iia.RADAU5": 3,
    "gauss_legendre.GAUSS4": 2,
    "gauss_legendre.GAUSS6": 3,
    "sdirk2.TABLEAU": 1,
    "trbdf2.TABLEAU": 2,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pendulum(t: Tensor, y: Tensor) -> Tensor:
    """Driven, so that the nodes matter."""
    return torch.stack([y[..., 1], -torch.sin(y[..., 0]) + 0.3 * torch.cos(3 * t)], -1)


def start() -> Tensor:
    return torch.tensor([1.0, 0.2], dtype=D)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    problem = pdf.ODEProblem(pendulum, start(), (0.0, 2.0))
    return pdf.solve(problem, "vern9", rtol=1e-14, atol=1e-14, saveat=[2.0]).ys[-1]


def end_state(name: str, steps: int, **options: object) -> Tensor:
    problem = pdf.ODEProblem(pendulum, start(), (0.0, 2.0))
    with torch.no_grad():
        return pdf.solve(problem, name, dt=2.0 / steps, saveat=[2.0], **options).ys[-1]


# -- orders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_convergence_is_the_method_s(name: str, exact: Tensor) -> None:
    steps = (20, 40, 80) if name != "gl6" else (8, 16, 32)
    errors = [float((end_state(name, n) - exact).norm()) for n in steps]
    measured = [math.log2(a / b) for a, b in pairwise(errors)]
    assert measured[-1] == pytest.approx(ORDERS[name], abs=0.25)
    assert methods.resolve(name).order == ORDERS[name]


@pytest.mark.parametrize("where", TABLEAUS)
def test_the_tableau_satisfies_its_simplifying_conditions(where: str) -> None:
    module, name = where.split(".")
    tab: ImplicitTableau = getattr(importlib.import_module(f"pydiffeqflux.backends.eager.fixed.{module}"), name)
    a, b, c = np.array(tab.a), np.array(tab.b), np.array(tab.c)
    for k in range(1, tab.order + 1):  # B(p): the quadrature
        assert b @ c ** (k - 1) == pytest.approx(1 / k, abs=1e-14)
    for k in range(1, TABLEAUS[where] + 1):  # C(q): the stages
        np.testing.assert_allclose(a @ c ** (k - 1), c**k / k, atol=1e-14)


@pytest.mark.parametrize("name", ["abm4", "rk4", "gl4"])
def test_a_last_step_of_another_size_keeps_the_order(name: str, exact: Tensor) -> None:
    # 2 is no multiple of these: the last step is shorter than the others.
    errors = [float((end_state(name, n) - exact).norm()) for n in (20.4, 40.4, 80.4)]
    assert math.log2(errors[1] / errors[2]) > 3.6


# -- Adams --------------------------------------------------------------------------------------


def test_the_adams_weights_on_an_even_grid_are_the_classical_ones() -> None:
    np.testing.assert_allclose(weights([0.0, -1.0, -2.0]), np.array([23, -16, 5]) / 12, rtol=1e-14)
    np.testing.assert_allclose(weights([1.0, 0.0, -1.0, -2.0]), np.array([9, 19, -5, 1]) / 24, rtol=1e-14)
    bashforth8 = np.array([434241, -1152169, 2183877, -2664477, 2102243, -1041723, 295767, -36799]) / 120960
    np.testing.assert_allclose(weights([-float(j) for j in range(8)]), bashforth8, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 5, 12])
def test_the_adams_weights_integrate_polynomials_on_any_grid(count: int) -> None:
    points = [0.0, *(-np.cumsum(np.random.default_rng(count).uniform(0.5, 1.5, count - 1)))]
    found = weights(points)
    for degree in range(count):
        value = sum(w * p**degree for w, p in zip(found, points, strict=True))
        scale = sum(abs(w * p**degree) for w, p in zip(found, points, strict=True))
        assert value == pytest.approx(1 / (degree + 1), abs=1e-13 * scale)


def test_the_adams_weights_have_the_gradient_of_their_points() -> None:
    points = torch.tensor([0.0, -0.9, -2.3], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: torch.stack(list(weights(list(p.unbind())))), (points,))


@pytest.mark.parametrize(("order", "corrected"), [(5, False), (6, True)])
def test_higher_adams_orders(order: int, corrected: bool, exact: Tensor) -> None:
    options = {"max_order": order, "step_size": 0.05}
    name = "implicit_adams" if corrected else "explicit_adams"
    errors = []
    for h in (0.05, 0.025):
        ys = pdf.odeint(
            pendulum, start(), torch.tensor([0.0, 2.0], dtype=D), method=name, options={**options, "step_size": h}
        )
        errors.append(float((ys[-1] - exact).norm()))
    # The three Runge-Kutta steps of the start are of local order 5, and few: they do not show here.
    assert math.log2(errors[0] / errors[1]) > order - 1 - 0.6


def test_a_corrector_that_does_not_settle_says_so_and_drops_its_oldest_slope() -> None:
    from pydiffeqflux.backends.common.rhs import Rhs

    y = torch.ones(1, dtype=D)
    rhs = Rhs(lambda t, y: -30.0 * y, None, y)
    stepper = Adams(4, Corrector(2, rtol=1e-12, atol=1e-12))
    carry, t = stepper.start(rhs, 0.0, y), 0.0
    for expected in (1, 2, 2):
        step = stepper.step(rhs, t, 0.05, y, carry)
        t, y, carry = t + 0.05, step.y1, step.carry
        assert len(carry) == expected
    assert not step.converged


def test_abm4_refuses_rows_that_step_for_themselves() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(3, 1), (0.0, 1.0), batched=True)
    with pytest.raises(UnsupportedError, match="rk4"):
        pdf.solve(problem, "abm4", dt=0.1, saveat=[1.0], per_sample=True)


# -- implicit equations -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["implicit_euler", "radauiia3", "radauiia5", "sdirk2", "trbdf2"])
def test_an_l_stable_method_damps_what_is_infinitely_stiff(name: str) -> None:
    problem = pdf.ODEProblem(lambda t, y: -1e8 * (y - torch.cos(t)), torch.tensor([3.0], dtype=D), (0.0, 1.0))
    y1 = pdf.solve(problem, name, dt=0.1, saveat=[1.0]).ys[-1]
    assert float((y1 - math.cos(1.0)).abs()) < 1e-6


@pytest.mark.parametrize("name", ["implicit_midpoint", "gl4", "gl6"])
def test_a_gauss_method_keeps_quadratic_invariants(name: str) -> None:
    problem = pdf.ODEProblem(lambda t, y: torch.stack([y[1], -y[0]]), start(), (0.0, 50.0))
    y1 = pdf.solve(problem, name, dt=0.5, saveat=[50.0]).ys[-1]
    assert float(y1.square().sum()) == pytest.approx(float(start().square().sum()), rel=1e-12)


@pytest.mark.parametrize("name", IMPLICIT)
def test_strong_nonlinearity_is_solved_to_rounding(name: str) -> None:
    # A step of size 1: the simplified iteration from the start's slope diverges, the damped one does not.
    y0 = torch.tensor([3.0], dtype=D)
    f: Callable[[Tensor, Tensor], Tensor] = lambda t, y: -(y**3)  # noqa: E731
    step = fixed_stepper(methods.resolve(name)).step(_rhs(f, y0), 0.0, 1.0, y0, None)
    assert step.converged
    if name == "implicit_euler":
        assert float(step.y1 + step.y1**3) == pytest.approx(3.0, abs=1e-13)
    assert abs(float(step.y1)) < 3.0


def _rhs(f: Callable[[Tensor, Tensor], Tensor], like: Tensor):  # type: ignore[no-untyped-def]
    from pydiffeqflux.backends.common.rhs import Rhs

    return Rhs(f, None, like)


def test_an_equation_without_a_solution_ends_the_solve_with_the_reason() -> None:
    # y1 = y0 + dt (1 + y1^2) has no real solution for dt = 1.
    problem = pdf.ODEProblem(lambda t, y: 1 + y**2, torch.tensor([1.0], dtype=D), (0.0, 2.0))
    with pytest.raises(ConvergenceError, match="implicit"):
        pdf.solve(problem, "implicit_euler", dt=1.0, saveat=[2.0])
    with pytest.warns(UserWarning, match="did not converge"):
        pdf.odeint(problem.func, problem.y0, torch.tensor([0.0, 1.0], dtype=D), method="implicit_euler")


@pytest.mark.parametrize("name", IMPLICIT)
def test_batched_rows_and_rows_that_step_for_themselves_come_to_the_same(name: str) -> None:
    y0 = torch.tensor([[1.0, 0.2], [0.5, -1.0], [2.0, 0.0]], dtype=D)

    def f(t: Tensor, y: Tensor) -> Tensor:
        drive = 0.3 * torch.cos(3 * t).reshape(-1) * torch.ones_like(y[:, 0])
        return torch.stack([y[:, 1], -torch.sin(y[:, 0]) + drive], -1)

    joint = pdf.solve(pdf.ODEProblem(f, y0, (0.0, 1.0)), name, dt=0.1, saveat=[0.55, 1.0]).ys
    batched = pdf.ODEProblem(f, y0, (0.0, 1.0), batched=True)
    for per_sample in (False, True):
        ys = pdf.solve(batched, name, dt=0.1, saveat=[0.55, 1.0], per_sample=per_sample).ys
        torch.testing.assert_close(ys, joint, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["trapezoid", "gl4", "abm4"])
def test_a_complex_state(name: str) -> None:
    problem = pdf.ODEProblem(lambda t, y: 1j * y, torch.ones(1, dtype=torch.complex128), (0.0, 1.0))
    y1 = pdf.solve(problem, name, dt=0.01, saveat=[1.0]).ys[-1]
    assert abs(complex(y1) - complex(math.cos(1), math.sin(1))) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_a_0_dim_state_keeps_its_dtype(dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 9, dtype=D, requires_grad=True)
    for name in (*IMPLICIT, "explicit_adams", "implicit_adams", "rk4", "dopri5"):
        ys = pdf.odeint(lambda t, y: -y * t, torch.tensor(1.0, dtype=dtype), t, method=name)
        assert ys.dtype == dtype and ys.shape == (9,)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*IMPLICIT, "abm4"])
def test_gradients_reach_state_parameters_and_times(name: str) -> None:
    def final(y0: Tensor, p: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        f = lambda t, y: torch.stack([y[1], -p * torch.sin(y[0]) + 0.3 * torch.cos(3 * t)])  # noqa: E731
        return pdf.solve(pdf.ODEProblem(f, y0, (t0, t1)), name, dt=0.3, saveat=[1.0, 1.37]).ys

    inputs = [torch.tensor(v, dtype=D, requires_grad=True) for v in ([1.0, 0.2], 0.8, 0.05, 1.5)]
    assert torch.autograd.gradcheck(final, inputs)


@pytest.mark.parametrize("name", ["implicit_euler", "gl4", "trbdf2"])
def test_second_derivatives_where_they_are_asked_for(name: str) -> None:
    def final(y0: Tensor, p: Tensor, second: bool) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: -p * y**3, y0, (0.0, 1.0))
        return pdf.solve(problem, name, dt=0.25, saveat=[1.0], sensealg=pdf.DiscreteAdjoint(second_order=second)).ys

    inputs = [torch.tensor(v, dtype=D, requires_grad=True) for v in ([1.0, 0.2], 0.8)]
    assert torch.autograd.gradgradcheck(lambda y, p: final(y, p, True), inputs)
    with pytest.raises(GradientError):
        torch.autograd.gradgradcheck(lambda y, p: final(y, p, False), inputs)


@pytest.mark.parametrize("name", ["abm4", "gl6", "trapezoid"])
def test_checkpoints_change_nothing(name: str) -> None:
    found = []
    for sensealg in (pdf.DiscreteAdjoint(), pdf.DiscreteAdjoint(checkpoints=3)):
        y0 = start().requires_grad_()
        problem = pdf.ODEProblem(pendulum, y0, (0.0, 2.0))
        pdf.solve(problem, name, dt=0.1, saveat=[0.55, 2.0], sensealg=sensealg).ys.square().sum().backward()
        found.append(y0.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


# -- jumps of the right-hand side ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["tsit5", "abm4", "radauiia5"])
@pytest.mark.parametrize("backwards", [False, True])
def test_each_side_of_a_jump_is_seen_from_its_own_side(name: str, backwards: bool) -> None:
    # At the jump itself f is nonsense; a solve that stops there must not evaluate it at that time.
    def f(t: Tensor, y: Tensor) -> Tensor:
        assert float(t.detach()) != 0.5
        return torch.full_like(y, 1.0 if float(t.detach()) < 0.5 else -2.0)

    span = (1.0, 0.0) if backwards else (0.0, 1.0)
    problem = pdf.ODEProblem(f, torch.zeros(1, dtype=D), span)
    sol = pdf.solve(problem, name, tstops=[0.5], dt=0.1, saveat=[span[1]])
    assert float(sol.ys[-1]) == pytest.approx(0.5 if backwards else -0.5, abs=1e-12)
    assert sol.stats.nreject == 0


def test_a_stepper_s_options_are_its_own() -> None:
    assert fixed_stepper(methods.FixedGauss4(), batched=True).batched  # type: ignore[attr-defined]
    assert isinstance(fixed_stepper(methods.FixedTRBDF2()), FixedImplicit)
    with pytest.raises(UnsupportedError, match="tsit5"):
        fixed_stepper(methods.Tsit5())
