"""The stiff methods: their orders, stiff behaviour, derivatives, and what they refuse."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from problems import stiff
from scipy.integrate import solve_ivp
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux import methods
from pydiffeqflux.backends.common import jacobian as jacobians
from pydiffeqflux.backends.common.rhs import Rhs, Scalar
from pydiffeqflux.backends.common.tolerances import Tolerances
from pydiffeqflux.backends.eager.auto_switch import AutoSwitchStepper, stability_boundary
from pydiffeqflux.backends.eager.bdf import coefficients as ndf
from pydiffeqflux.backends.eager.bdf.qndf import Carry, Qndf
from pydiffeqflux.backends.eager.catalogue import explicit
from pydiffeqflux.backends.eager.convergence import NewtonSettings
from pydiffeqflux.backends.eager.stepper import Step
from pydiffeqflux.backends.eager.stiff import stiff_stepper
from pydiffeqflux.errors import ConvergenceError, GradientError, UnsupportedError

TIGHT = Tolerances(1e-12, 1e-14)
SINGLE_STEP = {
    "rosenbrock23": methods.Rosenbrock23(),
    "rodas5p": methods.Rodas5P(),
    "kencarp4": methods.KenCarp4(),
    "kvaerno5": methods.Kvaerno5(),
}
NAMES = [*SINGLE_STEP, "qndf"]
ESDIRK = ["kencarp4", "kvaerno5"]
#: Order of the solution, of the error estimate's leading term, and of the dense output.
ORDERS = {"rosenbrock23": (2, 3, 2), "rodas5p": (5, 5, 4), "kencarp4": (4, 4, 3), "kvaerno5": (5, 5, 3)}


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepper(name: str, tol: Tolerances = TIGHT, **options: bool) -> Any:
    return stiff_stepper(methods.resolve(name), tol, **options)


def coupled(t: Tensor, y: Tensor) -> Tensor:
    """Not linear and not autonomous, with the solution :func:`coupled_solution`."""
    a, b = y.unbind(-1)
    return torch.stack([-a * a + t.sin() * (b - t.sin().exp()), t.cos() * b + (a * (1 + t) - 1) * b], -1)


def coupled_solution(t: float) -> Tensor:
    return torch.tensor([1 / (1 + t), math.exp(math.sin(t))])


def march(method: Any, rhs: Rhs, y: Tensor, t: float, dt: float, steps: int) -> list[tuple[float, Tensor, Step]]:
    """Equal steps, none of them judged: where each began, and what it gave."""
    taken, carry = [], method.start(rhs, t, y)
    for i in range(steps):
        step = method.step(rhs, t + i * dt, dt, y, carry)
        assert step.converged
        taken.append((t + i * dt, y, step))
        y, carry = step.y1, step.carry
    return taken


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in pairwise(errors)]


# -- orders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE_STEP)
@torch.no_grad()
def test_order_of_solution_estimate_and_dense_output(name: str) -> None:
    order, local, dense_order = ORDERS[name]
    method = stepper(name)
    ends, estimates, between = [], [], []
    for n in (32, 64):
        rhs, dt = Rhs(coupled, None, coupled_solution(0.0)), 2.0 / n
        taken = march(method, rhs, coupled_solution(0.0), 0.0, dt, n)
        ends.append((taken[-1][2].y1 - coupled_solution(2.0)).abs().max().item())
        estimates.append(taken[0][2].error.abs().max().item())
        worst = 0.0
        for t, y, step in taken:
            piece = step.interpolant()
            assert torch.allclose(piece.at([0.0, 1.0]), torch.stack([y, step.y1]), rtol=0, atol=1e-13)
            exact = torch.stack([coupled_solution(t + theta * dt) for theta in (0.25, 0.6)])
            worst = max(worst, (piece.at([0.25, 0.6]) - exact).abs().max().item())
        between.append(worst)
    assert slopes(ends)[0] > order - 0.25
    assert slopes(estimates)[0] == pytest.approx(local, abs=0.25)
    assert slopes(between)[0] > dense_order - 0.25
    assert method.order == order
    assert method.error_order + 1 == local


@torch.no_grad()
def test_rosenbrock23_is_the_papers_ode23s() -> None:
    """The tableau holds it in transformed form; these are Shampine & Reichelt's own formulas."""
    t, h, d, e32 = 0.3, 0.2, 1 / (2 + math.sqrt(2)), 6 + math.sqrt(2)
    y, rhs = coupled_solution(t) + 0.1, Rhs(coupled, None, coupled_solution(t))
    here = jacobians.jacobian(rhs, t, y, batched=False, with_time=True)
    assert here.dfdt is not None
    slope, w = here.dfdt, torch.eye(2) - h * d * here.dfdy
    f0 = rhs(t, y)
    k1 = torch.linalg.solve(w, f0 + h * d * slope)
    f1 = rhs(t + h / 2, y + h / 2 * k1)
    k2 = torch.linalg.solve(w, f1 - k1) + k1
    y1 = y + h * k2
    f2 = rhs(t + h, y1)
    k3 = torch.linalg.solve(w, f2 - e32 * (k2 - f1) - 2 * (k1 - f0) + h * d * slope)
    theta = 0.3
    between = y + h * (theta * (1 - theta) * k1 + theta * (theta - 2 * d) * k2) / (1 - 2 * d)
    method = stepper("rosenbrock23")
    step = method.step(rhs, t, h, y, method.start(rhs, t, y))
    assert torch.allclose(step.y1, y1, rtol=1e-14)
    assert torch.allclose(step.error, h / 6 * (k1 - 2 * k2 + k3), rtol=1e-10)
    assert torch.allclose(step.interpolant().at([theta])[0], between, rtol=1e-14)


@pytest.mark.parametrize("order", range(1, 6))
@torch.no_grad()
def test_order_of_each_ndf_formula_and_its_dense_output(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Qndf(Tolerances(1e-9, 1e-11))
    method._settings = NewtonSettings(method.tol, False, 20)
    monkeypatch.setattr(method, "_choose", lambda order, *rest: (1.0, order))
    ends, between = [], []
    for n in (80, 160):
        dt = 2.0 / n
        differences, points = [], [coupled_solution(-j * dt) for j in range(order + 1)]
        y = points[0]
        while points:
            differences.append(points[0])
            points = [a - b for a, b in pairwise(points)]
        table = torch.zeros(ndf.ROWS, 2)
        table[: order + 1] = torch.stack(differences)
        rhs = Rhs(coupled, None, y)
        carry = Carry(rhs(0.0, y), table, dt, order, 0, None)
        for i in range(n):
            before = y
            step = method.step(rhs, i * dt, dt, y, carry)
            assert step.converged
            assert step.error_order == order
            y, carry = step.y1, step.carry
        ends.append((y - coupled_solution(2.0)).abs().max().item())
        piece = step.interpolant()
        assert torch.allclose(piece.at([0.0, 1.0]), torch.stack([before, y]), rtol=0, atol=1e-12)
        between.append((piece.at([0.4])[0] - coupled_solution(2.0 - 0.6 * dt)).abs().max().item())
    assert slopes(ends)[0] > order - 0.25
    assert slopes(between)[0] > order - 0.25


def test_rescaling_the_difference_table_keeps_its_polynomial() -> None:
    coeffs = torch.randn(4)
    polynomial = lambda t: (coeffs * t ** torch.arange(4.0)).sum()  # noqa: E731

    def table(dt: float) -> Tensor:
        values = [polynomial(1.0 - j * dt) for j in range(4)]
        rows = torch.zeros(ndf.ROWS)
        for i in range(4):
            rows[i] = values[0]
            values = [a - b for a, b in pairwise(values)]
        return rows

    for factor in (0.3, 1.0, 2.5):
        found = torch.as_tensor(ndf.rescale(3, factor)) @ table(0.1)
        assert torch.allclose(found, table(0.1 * factor), atol=1e-12)
        assert torch.allclose(ndf.rescale(3, torch.tensor(factor)) @ table(0.1), found, atol=1e-14)


# -- stiffness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE_STEP)
@torch.no_grad()
def test_prothero_robinson_with_steps_far_beyond_the_fast_time_scale(name: str) -> None:
    """y' = -1e6 (y - cos t) - sin t: an explicit method would need steps of 3e-6, and an A-stable one that is not
    L-stable would keep the initial error alive."""

    def func(t: Tensor, y: Tensor) -> Tensor:
        return -1e6 * (y - t.cos()) - t.sin()

    y = torch.tensor([1.5])
    # KenCarp4's stages have order 2, so that is what stiffness leaves of it (and of its estimate): 1e-6 of it here.
    taken = march(stepper(name, Tolerances(1e-8, 1e-8)), Rhs(func, None, y), y, 0.0, 0.05, 40)
    error = abs(taken[-1][2].y1.item() - math.cos(2.0))
    assert error < {"rosenbrock23": 2e-3, "rodas5p": 1e-9, "kencarp4": 1e-7, "kvaerno5": 1e-7}[name]
    assert taken[-1][2].error.abs().max() < 1e-3


#: For the test's sake spans that end soon after all time scales have been met.
SHORT = {"rober": 1e3, "hires": 20.0, "orego": 5.0, "pollu": 60.0}


def radau(problem: stiff.StiffProblem, end: float) -> np.ndarray[Any, Any]:
    """SciPy's Radau at 1e-10."""

    def func(t: float, y: Any) -> Any:
        return problem.func(torch.tensor(t), torch.from_numpy(y)).numpy()

    def jac(t: float, y: Any) -> Any:
        return torch.func.jacrev(problem.func, 1)(torch.tensor(t), torch.from_numpy(y)).numpy()

    found = solve_ivp(func, (0, end), problem.y0.numpy(), method="Radau", rtol=1e-10, atol=1e-10, jac=jac)
    assert found.success
    values: np.ndarray[Any, Any] = found.y[:, -1]
    return values


def end_state(problem: stiff.StiffProblem, end: float, method: str, tol: float) -> pdf.Solution:
    with torch.no_grad():
        return pdf.solve(
            pdf.ODEProblem(problem.func, problem.y0, (0.0, end)),
            method,
            rtol=tol,
            atol=tol,
            save_everystep=False,
            dense=False,
        )


@pytest.mark.parametrize("problem", stiff.ALL, ids=lambda p: p.name)
def test_agrees_with_scipys_radau(problem: stiff.StiffProblem) -> None:
    end = SHORT[problem.name]
    expected = radau(problem, end)
    scale = 1.0 + np.abs(expected)
    for method, tol in (("rodas5p", 1e-10), ("qndf", 1e-8)):
        found = end_state(problem, end, method, tol).ys[-1].numpy()
        assert np.max(np.abs(found - expected) / scale) < 100 * tol, method


@pytest.mark.slow
@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("problem", stiff.ALL, ids=lambda p: p.name)
def test_agrees_with_scipys_radau_and_the_test_set_on_the_whole_span(problem: stiff.StiffProblem, method: str) -> None:
    end = problem.t_span[1]
    expected = radau(problem, end)
    reference = problem.reference.numpy()
    scale = 1.0 + np.abs(reference)
    # Radau itself, run at 1e-10, is within 1e-8 of the reference.
    assert np.max(np.abs(expected - reference) / scale) < 1e-8
    tol = 1e-5 if method == "rosenbrock23" else 1e-10  # order 2: 1e-10 would take a million steps
    found = end_state(problem, end, method, tol).ys[-1].numpy()
    assert np.max(np.abs(found - expected) / scale) < max(1e-8, 1000 * tol)


def test_stiff_problem_costs_few_steps() -> None:
    solution = end_state(stiff.ROBER, 1e4, "rodas5p", 1e-6)
    assert solution.stats.naccept < 150
    reused = end_state(stiff.ROBER, 1e4, "qndf", 1e-6)
    assert reused.stats.njac < reused.stats.naccept / 5


@torch.no_grad()
def test_a_rejected_step_moves_nothing_so_its_jacobian_serves_again() -> None:
    problem = pdf.ODEProblem(van_der_pol(20.0), torch.tensor([2.0, 0.0]), (0.0, 25.0))
    for method in ("rodas5p", "kencarp4"):
        stats = pdf.solve(problem, method, rtol=1e-4, atol=1e-6).stats
        assert stats.nreject > 3
        assert stats.njac <= stats.naccept


# -- derivatives --------------------------------------------------------------------------------


def two_steps(
    name: str, p: Tensor, y: Tensor, dts: tuple[Scalar, ...], t: Scalar = 0.1, **options: bool
) -> tuple[Tensor, Tensor]:
    """The state after these steps of a nonlinear, non-autonomous problem, and the dense output in the last."""
    method = stepper(name, Tolerances(1e-10, 1e-12), **options)
    if name == "qndf":  # four iterations, its usual limit, do not solve steps as long as these so well
        method._settings = NewtonSettings(method.tol, method.batched, 20)
    rhs = Rhs(lambda t, y: torch.tanh(y @ p) * torch.cos(t) - 5 * y, None, y)
    carry = method.start(rhs, t, y)
    for dt in dts:
        step = method.step(rhs, t, dt, y, carry)
        assert bool(torch.as_tensor(step.converged).all())
        y, carry, t = step.y1, step.carry, t + dt
    return y, step.interpolant().at([0.4])


def parameters() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)


@pytest.mark.parametrize("batched", [False, True], ids=["joint", "batched"])
@pytest.mark.parametrize("name", NAMES)
def test_first_derivatives(name: str, batched: bool) -> None:
    p, y = parameters()
    last = torch.tensor(0.03, requires_grad=True)  # the clipped last step, where times carry gradients

    def function(p: Tensor, y: Tensor, last: Tensor) -> Any:
        return two_steps(name, p, y, (0.05, 0.05, last), batched=batched)

    assert torch.autograd.gradcheck(function, (p, y, last), fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name: str) -> None:
    p, y = parameters()
    last = torch.tensor(0.03, requires_grad=True)

    def function(p: Tensor, y: Tensor, last: Tensor) -> Any:
        return two_steps(name, p, y, (0.05, last), second_order=True)

    assert torch.autograd.gradgradcheck(function, (p, y[0].detach().requires_grad_(), last), fast_mode=True)


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_derivatives_where_each_row_has_its_step(name: str) -> None:
    p, y = parameters()
    dt = torch.tensor([[0.05], [0.2], [0.1]], requires_grad=True)
    t = torch.tensor([[0.0], [0.3], [1.0]], requires_grad=True)

    def function(p: Tensor, y: Tensor, dt: Tensor, t: Tensor) -> Any:
        return two_steps(name, p, y, (dt, dt), t, batched=True)

    assert torch.autograd.gradcheck(function, (p, y, dt, t), fast_mode=True)
    found, between = function(p, y, dt, t)
    for i in range(3):
        alone, alone_between = two_steps(name, p, y[i], (dt[i].item(), dt[i].item()), t[i].item())
        assert torch.allclose(found[i], alone, atol=1e-12)
        assert torch.allclose(between[0, i], alone_between[0], atol=1e-12)


@pytest.mark.parametrize("name", [*ESDIRK, "qndf"])
def test_a_derivative_that_would_be_wrong_is_refused(name: str) -> None:
    p, y = parameters()
    (first,) = torch.autograd.grad(two_steps(name, p, y, (0.1,))[0].square().sum(), p, create_graph=True)
    with pytest.raises(GradientError, match=r"DiscreteAdjoint\(second_order=True\)"):
        torch.autograd.grad(first.sum(), p)
    out = two_steps(name, p, y, (0.1,), second_order=True)[0].square().sum()
    (first,) = torch.autograd.grad(out, p, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), p, create_graph=True)
    with pytest.raises(GradientError, match="second"):
        torch.autograd.grad(second.sum(), p)


def test_what_is_linear_in_the_first_derivative_is_not_refused() -> None:
    """Jacobian-vector products by two reverse passes ask for no derivative of W."""
    p, y = parameters()
    out = two_steps("kencarp4", p, y, (0.1,))[0]
    cotangent = torch.ones_like(out).requires_grad_()
    (pulled,) = torch.autograd.grad(out, p, cotangent, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, cotangent, torch.ones_like(p))
    eps = 1e-6
    with torch.no_grad():
        up, down = (two_steps("kencarp4", p + s * eps, y, (0.1,))[0] for s in (1, -1))
    assert torch.allclose(pushed, (up - down) / (2 * eps), atol=1e-7)


def test_rosenbrock_methods_have_third_derivatives() -> None:
    a = torch.tensor(0.7, requires_grad=True)

    def end(a: Tensor) -> Tensor:
        method = stepper("rodas5p")
        rhs = Rhs(lambda t, y: -a * y.square(), None, torch.ones(1))
        y = torch.ones(1)
        carry = method.start(rhs, 0.0, y)
        for i in range(4):
            step = method.step(rhs, 0.25 * i, 0.25, y, carry)
            y, carry = step.y1, step.carry
        return y.sum()  # 1 / (1 + a)

    value = end(a)
    for k in range(1, 4):
        (value,) = torch.autograd.grad(value, a, create_graph=True)
        assert value.item() == pytest.approx((-1) ** k * math.factorial(k) / 1.7 ** (k + 1), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_solve(name: str) -> None:
    """Adaptive steps: against an explicit method, and the same by torch.func."""
    y0 = torch.tensor([1.0, 0.5])

    def loss(a: Tensor, method: str, tol: float) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: torch.stack([-a * y[0] + y[1] ** 2, -20 * y[1] * a]), y0, (0.0, 0.3))
        return pdf.solve(problem, method, rtol=tol, atol=tol, saveat=[0.1, 0.3], dense=False).ys.square().sum()

    a = torch.tensor(1.3, requires_grad=True)
    (found,) = torch.autograd.grad(loss(a, name, 1e-4), a)
    (expected,) = torch.autograd.grad(loss(a, "vern9", 1e-10), a)
    assert found.item() == pytest.approx(expected.item(), rel=1e-2)
    assert torch.func.grad(loss)(a.detach(), name, 1e-4).item() == pytest.approx(found.item(), rel=1e-8)


@pytest.mark.parametrize("name", ["rodas5p", "kencarp4", "qndf"])
def test_second_derivative_through_solve(name: str) -> None:
    """Of y = 1 / (1 + a t) at t = 1."""
    a = torch.tensor(0.7, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -a * y.square(), torch.ones(1), (0.0, 1.0))
    sensealg = pdf.DiscreteAdjoint(second_order=True)
    end = pdf.solve(problem, name, rtol=1e-6, atol=1e-8, sensealg=sensealg, dense=False).ys[-1].sum()
    (first,) = torch.autograd.grad(end, a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    assert first.item() == pytest.approx(-(1.7**-2), rel=1e-3)
    assert second.item() == pytest.approx(2 * 1.7**-3, rel=1e-2)


def test_a_replay_with_gradients_does_not_meet_a_jacobian_without_its_graph() -> None:
    p = torch.tensor([0.7], requires_grad=True)
    y, method = torch.ones(1), stepper("rosenbrock23")
    rhs = Rhs(lambda t, y: -p * y**2, None, y)
    with torch.no_grad():
        carry = method.start(rhs, 0.0, y)
        method.step(rhs, 0.0, 0.5, y, carry)
    assert rhs.njac == 1
    replayed = method.step(rhs, 0.0, 0.5, y, carry).y1
    fresh = method.step(rhs, 0.0, 0.5, y, method.start(rhs, 0.0, y)).y1
    for got, want in zip(torch.autograd.grad(replayed, p), torch.autograd.grad(fresh, p), strict=True):
        assert torch.allclose(got, want, rtol=1e-13)


# -- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_batched_rows_equal_single_systems(name: str) -> None:
    y0 = torch.tensor([[2.0, 0.0], [0.5, 1.0], [-1.0, 3.0]])
    rates = torch.tensor([5.0, 50.0, 500.0])

    def field(mu: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def func(t: Tensor, y: Tensor) -> Tensor:
            a, b = y.unbind(-1)
            return torch.stack([b, mu * (1 - a * a) * b - a + t], -1)

        return func

    tol = Tolerances(1e-9, 1e-11)
    whole = march(stepper(name, tol, batched=True), Rhs(field(rates), None, y0), y0, 0.0, 1e-3, 3)[-1][2]
    for i in range(3):
        alone = march(stepper(name, tol), Rhs(field(rates[i]), None, y0[i]), y0[i], 0.0, 1e-3, 3)[-1][2]
        assert torch.allclose(whole.y1[i], alone.y1, rtol=1e-9, atol=1e-11)
        assert torch.allclose(whole.error[i], alone.error, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("name", ESDIRK)
@torch.no_grad()
def test_a_row_that_newton_cannot_solve_does_not_hold_the_others_up(name: str) -> None:
    y = torch.tensor([[1.0], [1.0]])
    rhs = Rhs(lambda t, y: y * y, None, y)  # x = h (1 + x)^2 has no real solution beyond h = 1/4
    method = stepper(name, Tolerances(1e-6, 1e-8), batched=True)
    t, dt = torch.zeros(2, 1), torch.tensor([[0.01], [4.0]])
    step = method.step(rhs, t, dt, y, method.start(rhs, t, y))
    assert step.converged.tolist() == [True, False]
    assert step.y1[0].item() == pytest.approx(1 / (1 - 0.01), rel=1e-7)
    assert step.y1.isfinite().all()
    together = method.step(rhs, 0.0, 4.0, y, method.start(rhs, 0.0, y))
    assert together.converged is False


@torch.no_grad()
@pytest.mark.parametrize(("name", "gamma"), [("kencarp4", 0.25), ("rosenbrock23", 1.0 / (2.0 + math.sqrt(2.0)))])
def test_singular_matrix_asks_for_another_step(name: str, gamma: float) -> None:
    dt = 0.5 / gamma
    while gamma * dt != 0.5:
        dt = math.nextafter(dt, 0.0 if gamma * dt > 0.5 else 10.0)
    y = torch.ones(1)
    rhs = Rhs(lambda t, y: 2.0 * y, None, y)  # W = 1 - 2 gamma dt = 0
    method = stepper(name, Tolerances(1e-6, 1e-8))
    assert not method.step(rhs, 0.0, dt, y, method.start(rhs, 0.0, y)).converged
    assert method.step(rhs, 0.0, 0.1, y, method.start(rhs, 0.0, y)).converged


@pytest.mark.parametrize("name", [*ESDIRK, "qndf"])
def test_equations_without_a_solution_are_reported(name: str) -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y > 0, -1e20, 1e20)  # whatever the step, x = h f(x) has no solution

    with pytest.raises(ConvergenceError, match=name):
        pdf.solve(pdf.ODEProblem(func, torch.zeros(1), (1.0, 2.0)), name, dt=1e-3)


@pytest.mark.parametrize(("name", "tol"), [("kencarp4", 1e-10), ("qndf", 1e-6)])
@torch.no_grad()
def test_rests_at_a_steady_state(name: str, tol: float) -> None:
    """There the corrections are rounding errors, which do not shrink, and are no reason to reject a step."""
    axes = torch.linalg.qr(torch.randn(8, 8))[0]
    matrix, source = axes @ torch.logspace(0, 8, 8).diag() @ axes.T, torch.rand(8) + 0.5
    y0 = source ** (1 / 3)
    problem = pdf.ODEProblem(lambda t, y: -matrix @ (y**3 - source), y0, (0.0, 1e6))
    solution = pdf.solve(problem, name, rtol=tol, atol=0.01 * tol, save_everystep=False)
    assert torch.allclose(solution.ys[-1], y0, rtol=1e-14)
    assert solution.stats.nreject == 0
    assert solution.stats.naccept < 30


# -- Jacobians ----------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """Its backward pass looks at values, which vmap does not allow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2 if grad.detach().abs().max().item() > 0 else grad


def twisted(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    return torch.sin(y @ p) * t + t**2 * y


TIMES: dict[str, Scalar] = {
    "float": 0.7,
    "scalar": torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    "rows": torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64),
}


@pytest.mark.parametrize("way", [0, 1, 2], ids=["recorded", "torch.func", "one-by-one"])
@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("batched", [False, True], ids=["joint", "batched"])
def test_jacobian(batched: bool, when: str, way: int) -> None:
    if when == "rows" and not batched:
        return  # rows of their own times are rows
    t = TIMES[when]
    p, y = torch.randn(2, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)

    def at(p: Tensor, y: Tensor) -> jacobians.Linearised:
        rhs = Rhs(lambda t, y: twisted(t, y, p), None, y)
        jacobians._way[rhs] = way
        found = jacobians.jacobian(rhs, t, y, batched=batched, with_time=True)
        assert (rhs.nf, rhs.njac) == (0, 1)
        return found

    time = torch.as_tensor(t).detach()
    full = torch.autograd.functional.jacobian(lambda y: twisted(time, y, p), y.detach())
    expected = torch.stack([full[i, :, i] for i in range(3)]) if batched else full.reshape(6, 6)
    found, eps = at(p, y), 1e-6
    assert torch.allclose(found.dfdy, expected)
    assert torch.allclose(found.dfdt, (twisted(time + eps, y, p) - twisted(time - eps, y, p)) / (2 * eps), atol=1e-8)
    assert torch.allclose(found.f, twisted(time, y, p))
    assert torch.autograd.gradcheck(lambda p, y: (at(p, y).dfdy, at(p, y).dfdt), (p, y), fast_mode=True)
    with torch.no_grad():
        detached = at(p, y)
    assert not any(x.requires_grad for x in (detached.f, detached.dfdy, detached.dfdt))


def test_jacobian_of_a_function_that_cannot_be_vectorised(caplog: pytest.LogCaptureFixture) -> None:
    p = torch.tensor(0.5, requires_grad=True)
    y0 = torch.tensor([1.0, 2.0])

    def end(cube: Any) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: -p * cube(y) + t, y0, (0.0, 1.0))
        return pdf.solve(problem, "rodas5p", rtol=1e-6, atol=1e-8).ys[-1].sum()

    with caplog.at_level(logging.WARNING, logger="pydiffeqflux"):
        found = end(Cube.apply)
    assert len(caplog.records) == 1
    assert "one by one" in caplog.text
    expected = end(lambda x: x**3)
    assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(found, p)[0], torch.autograd.grad(expected, p)[0], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rodas5p", "kencarp4"])
def test_compiled_code_keeps_its_second_derivatives(name: str) -> None:
    """Compiled backward passes have no graph: differentiating a Jacobian of theirs must not lose a part of it."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    y0 = torch.tensor([0.3, -0.8])

    def gradient(model: Any) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: y * model(y) - 3 * y, y0, (0.0, 1.0))
        end = pdf.solve(problem, name, rtol=1e-5, atol=1e-7, dense=False).ys[-1].sum()
        return torch.autograd.grad(end, net[0].weight)[0]

    assert torch.allclose(gradient(torch.compile(net, backend="aot_eager")), gradient(net), rtol=1e-6)


def test_errors_of_the_function_itself_come_through() -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        if torch._C._functorch.maybe_current_level() is not None:
            raise RuntimeError("only under a transform")
        return -y

    solved = pdf.solve(pdf.ODEProblem(func, torch.ones(1), (0.0, 1.0)), "rodas5p", rtol=1e-8).ys[-1]
    assert solved.item() == pytest.approx(math.exp(-1), rel=1e-6)

    def broken(t: Tensor, y: Tensor) -> Tensor:
        if y.requires_grad:
            raise RuntimeError("of the model's own")
        return -y

    with pytest.raises(RuntimeError, match="of the model's own"):
        pdf.solve(pdf.ODEProblem(broken, torch.ones(1), (0.0, 1.0)), "rodas5p")


def test_jacobian_of_a_function_that_differentiates_inside() -> None:
    """A Hamiltonian's field is a gradient itself."""

    def field(t: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z if z.requires_grad else z.detach().requires_grad_()
            energy = 0.5 * z[1] ** 2 + 1.0 - torch.cos(z[0])
            (grad,) = torch.autograd.grad(energy, z, create_graph=True)
        return torch.stack([grad[1], -grad[0]])

    z = torch.tensor([0.4, 0.2])
    with torch.no_grad():
        found = jacobians.jacobian(Rhs(field, None, z), 0.0, z, batched=False).dfdy
    assert torch.allclose(found, torch.tensor([[0.0, 1.0], [-math.cos(0.4), 0.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_complex_states(name: str) -> None:
    y0 = torch.tensor([1.0 + 0.5j, -0.3j])
    rate = torch.tensor([-1.0 + 3.0j, -40.0 - 2.0j], requires_grad=True)

    def end(rate: Tensor) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: rate * y.conj().conj() - 0.1 * t * y.conj(), y0, (0.0, 0.5))
        return pdf.solve(problem, name, rtol=1e-4, atol=1e-6).ys[-1]

    found = end(rate)
    expected = pdf.solve(
        pdf.ODEProblem(lambda t, y: rate * y - 0.1 * t * y.conj(), y0, (0.0, 0.5)), "vern9", rtol=1e-10, atol=1e-12
    ).ys[-1]
    assert torch.allclose(found, expected, rtol=1e-2, atol=1e-3)
    seed = torch.tensor([1.0 - 1.0j, 0.5 + 2.0j])
    got, want = (torch.autograd.grad(x, rate, seed)[0] for x in (found, expected))
    assert torch.allclose(got, want, rtol=3e-2, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_float32(name: str) -> None:
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float32)
    with torch.no_grad():
        found = pdf.solve(pdf.ODEProblem(stiff.rober, y0, (0.0, 100.0)), name, rtol=1e-4, atol=1e-7).ys[-1]
    assert found.dtype == torch.float32
    assert np.allclose(found.numpy(), radau(stiff.ROBER, 100.0), rtol=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_initial_states(name: str) -> None:
    y0 = torch.tensor([[1.0, 0.2], [0.3, -0.5]])

    def end(y0: Tensor) -> Tensor:
        problem = pdf.ODEProblem(lambda t, y: -y + torch.stack([y[1], -30 * y[1] * y[0]]), y0, (0.0, 1.0))
        return pdf.solve(problem, name, rtol=1e-5, atol=1e-6, save_everystep=False, dense=False).ys[-1]

    with torch.no_grad():
        mapped = torch.func.vmap(end)(y0)
        single = torch.stack([end(row) for row in y0])
    assert torch.allclose(mapped, single, atol=1e-3)


# -- automatic switching ------------------------------------------------------------------------


def van_der_pol(mu: float) -> Callable[[Tensor, Tensor], Tensor]:
    def func(t: Tensor, y: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        return torch.stack([b, mu * ((1 - a * a) * b) - a], -1)

    return func


@pytest.mark.parametrize(("method", "boundary"), [("tsit5", 3.507), ("dopri5", 3.307), ("vern7", 4.641)])
def test_stability_boundary(method: str, boundary: float) -> None:
    assert stability_boundary(explicit(method).tableau) == pytest.approx(boundary, abs=2e-3)


@pytest.mark.parametrize("method", ["AutoTsit5(Rodas5P)", "AutoVern7(QNDF)", "AutoDP5(KenCarp4)"])
def test_switches_both_ways_on_a_stiff_limit_cycle(method: str) -> None:
    problem = pdf.ODEProblem(van_der_pol(100.0), torch.tensor([2.0, 0.0]), (0.0, 90.0))
    with torch.no_grad():
        auto = pdf.solve(problem, method, rtol=1e-6, atol=1e-8, save_everystep=False)
        reference = pdf.solve(problem, "rodas5p", rtol=1e-7, atol=1e-8, save_everystep=False)
    assert torch.allclose(auto.ys[-1], reference.ys[-1], rtol=1e-3)
    assert 0 < auto.stats.njac < 0.8 * auto.stats.naccept  # both methods took their part
    assert auto.stats.nf < 6000  # Tsit5 alone takes 50 000


def test_counts_its_switches() -> None:
    method = AutoSwitchStepper(explicit("tsit5"), stepper("rodas5p", Tolerances(1e-6, 1e-8)))
    y = torch.tensor([1.0])
    rhs = Rhs(lambda t, y: -1000.0 * (y - t.cos()), None, y)
    with torch.no_grad():
        carry, t, seen = method.start(rhs, 0.0, y), 0.0, []
        for _ in range(12):  # at the boundary of Tsit5's stability
            step = method.step(rhs, t, 3.4e-3, y, carry)
            y, carry, t = step.y1, step.carry, t + 3.4e-3
            seen.append((carry.stiff, carry.switches))
        assert seen[8:11] == [(False, 0), (True, 1), (True, 1)]
        for _ in range(4):  # steps that an explicit method could take as well
            step = method.step(rhs, t, 1e-4, y, carry)
            y, carry, t = step.y1, step.carry, t + 1e-4
    assert (carry.stiff, carry.switches) == (False, 2)


def test_never_needs_a_jacobian_where_nothing_is_stiff() -> None:
    problem = pdf.ODEProblem(van_der_pol(1.0), torch.tensor([2.0, 0.0]), (0.0, 10.0))
    with torch.no_grad():
        auto = pdf.solve(problem, "AutoTsit5(Rosenbrock23)", rtol=1e-6, atol=1e-8)
        plain = pdf.solve(problem, "tsit5", rtol=1e-6, atol=1e-8)
    assert auto.stats.njac == 0
    assert torch.equal(auto.ys, plain.ys)


def test_gradient_across_a_switch() -> None:
    a = torch.tensor(1.5, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -2000.0 * (y - a * t.cos()), torch.zeros(1), (0.0, 2.0))
    solution = pdf.solve(problem, "AutoTsit5(Rodas5P)", rtol=1e-5, atol=1e-7)
    assert 3 < solution.stats.njac < solution.stats.naccept
    (found,) = torch.autograd.grad(solution.ys[-1].sum(), a)
    # the solution is a (mu^2 cos t + mu sin t) / (1 + mu^2), once the transient is over
    assert found.item() == pytest.approx((2000**2 * math.cos(2) + 2000 * math.sin(2)) / (1 + 2000**2), rel=1e-4)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qndf", "AutoTsit5(Rodas5P)"])
def test_methods_whose_rows_step_together_refuse_per_sample(method: str) -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, 1), (0.0, 1.0), batched=True)
    with pytest.raises(UnsupportedError, match="per_sample"):
        pdf.solve(problem, method, per_sample=True)


@pytest.mark.parametrize("name", SINGLE_STEP)
def test_per_sample_solves(name: str) -> None:
    y0, rates = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [400.0]])
    problem = pdf.ODEProblem(lambda t, y: -rates * (y - torch.cos(t)), y0, (0.0, 1.0), batched=True)
    with torch.no_grad():
        found = pdf.solve(problem, name, rtol=1e-4, atol=1e-6, saveat=[1.0], per_sample=True)
        exact = [(r * r * math.cos(1) + r * math.sin(1)) / (1 + r * r) for r in (2.0, 400.0)]
        exact[0] += (1 - 4 / 5) * math.exp(-2)
    assert found.ys[-1].flatten().tolist() == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("pair", [("euler", "rodas5p"), ("tsit5", "tsit5")])
def test_switching_refuses_what_cannot_work(pair: tuple[str, str]) -> None:
    second = explicit("tsit5") if pair[1] == "tsit5" else stepper(pair[1])
    with pytest.raises(UnsupportedError, match="AutoSwitch"):
        AutoSwitchStepper(explicit(pair[0]), second)


def test_the_factory_names_what_it_does_not_have() -> None:
    with pytest.raises(UnsupportedError, match="tsit5"):
        stepper("tsit5")
