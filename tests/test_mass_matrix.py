"""``M y' = f``: orders, references, consistent starts, gradients, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from problems import algebraic
from problems.algebraic import LAST_IS_ALGEBRAIC, PENDULUM_MASS, PRODUCT_MASS
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux import methods
from pydiffeqflux.backends.common.mass import Mass, MassRhs
from pydiffeqflux.backends.common.settle import Policy
from pydiffeqflux.backends.common.tolerances import Tolerances
from pydiffeqflux.backends.eager.bdf.qndf import Qndf
from pydiffeqflux.backends.eager.convergence import NewtonSettings
from pydiffeqflux.backends.eager.stiff import stiff_stepper
from pydiffeqflux.errors import (
    GradientError,
    HighIndexError,
    InconsistentStateError,
    InitialisationError,
    MassMatrixError,
    MassMatrixMethodError,
    ShapeError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)

TIGHT = Tolerances(1e-12, 1e-14)
NAMES = ["rosenbrock23", "rodas5p", "kencarp4", "kvaerno5", "qndf"]
#: Orders of the solution (of both kinds of variables), of the error estimate, and of the dense output.
ORDERS = {"rosenbrock23": (2, 3, 2), "rodas5p": (5, 5, 4), "kencarp4": (4, 4, 3), "kvaerno5": (5, 5, 3)}


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def mass_rhs(func: Any, matrix: Tensor, like: Tensor) -> MassRhs:
    return MassRhs(func, None, like, Mass.of(matrix, like, False), Policy(TIGHT, False))


def rotated(seed: int = 1) -> tuple[Any, Tensor, Tensor]:
    """:func:`product` in other coordinates, in which neither M nor the split of the variables is diagonal."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(2, 2, generator=generator))[0] for _ in range(2))
    return (lambda t, u: algebraic.product(t, u @ right) @ left.T), left @ PRODUCT_MASS @ right.T, right


# -- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORDERS)
@torch.no_grad()
def test_orders_of_both_kinds_of_variables(name: str) -> None:
    order, local, dense_order = ORDERS[name]
    method = stiff_stepper(methods.resolve(name), TIGHT)
    if hasattr(method, "_settings"):  # a fixed step may need more iterations than an adaptive one would allow
        method._settings = NewtonSettings(TIGHT, False, 60)
    ends, estimates, between = [], [], []
    for n in (32, 64):
        dt, y = 1.0 / n, algebraic.product_solution(0.0)
        rhs = mass_rhs(algebraic.product, PRODUCT_MASS, y)
        carry, worst = method.start(rhs, 0.0, y), 0.0
        for i in range(n):
            step = method.step(rhs, i * dt, dt, y, carry)
            assert step.converged and step.error is not None
            exact = algebraic.product_solution((i + 0.3) * dt)
            worst = max(worst, (step.interpolant().at([0.3])[0] - exact).abs().max().item())
            if i == 0:
                estimates.append(step.error.abs().max().item())
            y, carry = step.y1, step.carry
        ends.append((y - algebraic.product_solution(1.0)).abs())
        between.append(worst)
    reached = torch.log2(ends[0] / ends[1])
    assert bool((reached > order - (0.6 if name == "rodas5p" else 0.25)).all())  # z of Rodas5P gets there slowly
    assert math.log2(estimates[0] / estimates[1]) == pytest.approx(local, abs=0.3)
    assert math.log2(between[0] / between[1]) > dense_order - 0.25


@pytest.mark.parametrize("order", range(1, 6))
@torch.no_grad()
def test_order_of_each_ndf_formula(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydiffeqflux.backends.eager.bdf import coefficients as ndf
    from pydiffeqflux.backends.eager.bdf.qndf import Carry

    method = Qndf(Tolerances(1e-9, 1e-11))
    method._settings = NewtonSettings(method.tol, False, 20)
    monkeypatch.setattr(method, "_choose", lambda order, *rest: (1.0, order))
    ends = []
    for n in (80, 160):
        dt, differences = 1.0 / n, []
        points = [algebraic.product_solution(-j * dt) for j in range(order + 1)]
        y = points[0]
        while points:
            differences.append(points[0])
            points = [a - b for a, b in pairwise(points)]
        table = torch.zeros(ndf.ROWS, 2)
        table[: order + 1] = torch.stack(differences)
        rhs = mass_rhs(algebraic.product, PRODUCT_MASS, y)
        carry = Carry(rhs.derivative(0.0, y), table, dt, order, 0, None)
        for i in range(n):
            step = method.step(rhs, i * dt, dt, y, carry)
            assert step.converged
            y, carry = step.y1, step.carry
        ends.append((y - algebraic.product_solution(1.0)).abs())
    assert bool((torch.log2(ends[0] / ends[1]) > order - 0.3).all())


@torch.no_grad()
def test_the_derivative_of_a_consistent_state() -> None:
    func, matrix, right = rotated()
    for t in (0.0, 0.7):
        y = algebraic.product_solution(t)
        slope = torch.stack([-(1 + t * t) * y[0], torch.tensor(2 * t)])
        assert torch.allclose(mass_rhs(algebraic.product, PRODUCT_MASS, y).derivative(t, y), slope, rtol=1e-13)
        turned = right @ y
        assert torch.allclose(mass_rhs(func, matrix, turned).derivative(t, turned), right @ slope, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_rober_with_its_conservation_law(name: str) -> None:
    """Against SciPy's Radau, at 1e-10, on the three differential equations."""
    reference = algebraic.rober_by_scipy(1e4)
    problem = pdf.ODEProblem(algebraic.rober, torch.tensor([1.0, 0.0, 0.0]), (0.0, 1e4), mass_matrix=LAST_IS_ALGEBRAIC)
    loose = name == "rosenbrock23"
    sol = pdf.solve(problem, name, rtol=1e-5 if loose else 1e-8, atol=1e-9 if loose else 1e-12, save_everystep=False)
    assert torch.allclose(sol.ys[-1], reference, rtol=3e-4 if loose else 2e-6, atol=0)
    assert abs(float(sol.ys[-1].sum()) - 1) < 1e-14
    assert sol.stats.backend == "torch"


@pytest.mark.parametrize("name", ["rodas5p", "kvaerno5", "qndf"])
@torch.no_grad()
def test_a_pendulum_swings_with_its_exact_period(name: str) -> None:
    angle = 1.5
    start, period = algebraic.pendulum_start(angle), algebraic.pendulum_period(angle)
    problem = pdf.ODEProblem(algebraic.pendulum, start, (0.0, period), mass_matrix=PENDULUM_MASS)
    sol = pdf.solve(problem, name, rtol=1e-9, atol=1e-10, saveat=[0.25 * period, period])
    assert torch.allclose(sol.ys[-1], start, atol=1e-6)
    bottom, speed = sol.ys[0], math.sqrt(2 * algebraic.GRAVITY * (1 - math.cos(angle)))
    assert torch.allclose(bottom[:2], torch.tensor([0.0, -1.0]), atol=1e-6)
    assert float(bottom[4]) == pytest.approx(speed**2 + algebraic.GRAVITY, rel=1e-6)  # centripetal force and weight


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_matrix_with_an_inverse_is_the_ode_of_its_inverse(name: str) -> None:
    matrix = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    field = lambda t, y: torch.stack([-y[..., 0] * y[..., 1], torch.cos(t) - y[..., 1]], -1)  # noqa: E731
    y0 = torch.tensor([1.0, 0.5])
    ode = pdf.ODEProblem(lambda t, y: torch.linalg.solve(matrix, field(t, y)), y0, (0.0, 2.0))
    settings = {"rtol": 1e-6, "atol": 1e-8, "saveat": 0.5}
    for problem in (
        pdf.ODEProblem(field, y0, (0.0, 2.0), mass_matrix=matrix),
        pdf.ODEProblem(field, y0.expand(3, 2), (0.0, 2.0), batched=True, mass_matrix=matrix),
    ):
        found = pdf.solve(problem, name, **settings).ys
        expected = pdf.solve(ode, name, **settings).ys
        assert torch.allclose(found if found.dim() == 2 else found[:, 1], expected, atol=1e-5)


@torch.no_grad()
def test_rodas5p_takes_the_same_steps_as_on_the_explicit_ode() -> None:
    """Rosenbrock methods are invariant under multiplication by M^-1: step for step the same numbers."""
    matrix = torch.tensor([[2.0, 1.0], [0.5, 3.0]])
    field = lambda t, y: torch.stack([-y[0] * y[1], torch.cos(t) - y[1]])  # noqa: E731
    y0 = torch.tensor([1.0, 0.5])
    one = pdf.solve(pdf.ODEProblem(field, y0, (0.0, 2.0), mass_matrix=matrix), "rodas5p", dt=0.1)
    two = pdf.solve(
        pdf.ODEProblem(lambda t, y: torch.linalg.solve(matrix, field(t, y)), y0, (0.0, 2.0)), "rodas5p", dt=0.1
    )
    assert torch.allclose(one.ts, two.ts, rtol=1e-9) and torch.allclose(one.ys, two.ys, rtol=1e-11)


@torch.no_grad()
def test_states_that_are_structures_backwards_and_in_single_precision() -> None:
    mass = torch.diag(torch.tensor([1.0, 0.0]))
    func = lambda t, s: {"y": -s["z"] * s["y"], "z": s["z"] - 1 - t * t}  # noqa: E731
    start = {"y": torch.ones(1), "z": torch.ones(1)}
    there = pdf.solve(pdf.ODEProblem(func, start, (0.0, 1.0), mass_matrix=mass), rtol=1e-9, atol=1e-11)
    assert there.stats.method == "rodas5p"
    end = {name: states[-1] for name, states in there.ys.items()}
    assert float(end["y"]) == pytest.approx(math.exp(-4 / 3), rel=1e-7)
    back = pdf.solve(pdf.ODEProblem(func, end, (1.0, 0.0), mass_matrix=mass), "qndf", rtol=1e-9, atol=1e-11)
    assert float(back.ys["y"][-1]) == pytest.approx(1.0, abs=1e-6)
    single = algebraic.product_solution(0.0).float()
    sol = pdf.solve(pdf.ODEProblem(algebraic.product, single, (0.0, 1.0), mass_matrix=PRODUCT_MASS), rtol=1e-4)
    assert sol.ys.dtype == torch.float32
    assert torch.allclose(sol.ys[-1].double(), algebraic.product_solution(1.0), rtol=1e-3)


# -- consistent states --------------------------------------------------------------------------


def off(policy: str, **options: Any) -> pdf.Solution:
    start = torch.tensor([1.0, 3.0])
    problem = pdf.ODEProblem(algebraic.product, start, (0.0, 1.0), mass_matrix=PRODUCT_MASS)
    return pdf.solve(problem, "rodas5p", rtol=1e-8, atol=1e-10, initialise=policy, **options)


def test_an_inconsistent_start_is_refused_with_its_residual() -> None:
    with pytest.raises(InconsistentStateError, match=r"residual is 2.*initialise='solve'") as caught:
        off("check")
    assert caught.value.residual == 2.0 and caught.value.t == 0.0
    with pytest.raises(UnknownNameError, match="initialise='guess'"):
        off("guess")


def test_an_inconsistent_start_is_solved_for() -> None:
    sol = off("solve")
    assert torch.allclose(sol.ys[0], torch.tensor([1.0, 1.0]), atol=1e-12)
    assert torch.allclose(sol.ys[-1], algebraic.product_solution(1.0), rtol=1e-7)


def test_only_the_differential_part_of_a_start_is_kept() -> None:
    """In mixed coordinates that is M y0, and not any of its entries."""
    func, matrix, right = rotated()
    start = right @ torch.tensor([1.0, 3.0])
    problem = pdf.ODEProblem(func, start, (0.0, 1.0), mass_matrix=matrix)
    sol = pdf.solve(problem, "rodas5p", rtol=1e-8, atol=1e-10, initialise="solve")
    assert torch.allclose(sol.ys[0], right @ torch.tensor([1.0, 1.0]), atol=1e-11)
    assert torch.allclose(sol.ys[-1], right @ algebraic.product_solution(1.0), rtol=1e-7)


def test_a_start_from_which_nothing_consistent_is_found() -> None:
    func = lambda t, u: torch.stack([u[0], u[1] ** 2 + 1.0])  # noqa: E731
    problem = pdf.ODEProblem(func, torch.tensor([1.0, 0.5]), (0.0, 1.0), mass_matrix=PRODUCT_MASS)
    with pytest.raises(InitialisationError, match="t=0"):
        pdf.solve(problem, "rodas5p", initialise="solve")


@pytest.mark.parametrize("name", NAMES)
def test_states_after_doses_and_events_are_consistent(name: str) -> None:
    start = algebraic.product_solution(0.0)
    problem = pdf.ODEProblem(algebraic.product, start, (0.0, 1.0), mass_matrix=PRODUCT_MASS)
    lift = torch.tensor([0.5, 0.0])
    dose = pdf.PresetTimeCallback([0.25], lambda t, u: u + lift)
    event = pdf.Event(lambda t, u: t - 0.5, affect=lambda t, u: u - lift, terminal=False)
    settings: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7, "callbacks": dose, "event": event}
    with pytest.raises(InconsistentStateError, match=r"t=0\.25"):
        pdf.solve(problem, name, **settings)
    sol = pdf.solve(problem, name, initialise="solve", **settings)
    assert float(sol.ts[-1]) == 1.0
    for t, u in zip(sol.ts, sol.ys.detach(), strict=True):
        assert abs(algebraic.product(t, u)[1]) < (1e-3 if name == "rosenbrock23" else 1e-5)


def test_an_index_above_one_is_named() -> None:
    start = algebraic.pendulum_start(1.0)
    problem = pdf.ODEProblem(algebraic.pendulum_index_3, start, (0.0, 1.0), mass_matrix=PENDULUM_MASS)
    for name in NAMES:
        with pytest.raises(HighIndexError, match="index of the problem is above 1"):
            pdf.solve(problem, name, initialise="solve")


# -- gradients ----------------------------------------------------------------------------------

MIXED = torch.tensor([[1.0, 0.2, 0.0], [0.3, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
TURN = torch.linalg.qr(torch.tensor([[0.4, -1.0, 0.3], [0.7, 0.2, 0.5], [0.1, 0.6, -0.9]], dtype=torch.float64))[0]


def driven(k: Tensor) -> Any:
    def func(t: Tensor, u: Tensor) -> Tensor:
        y, w, z = u.unbind(-1)
        held = z - k[1] * (1 + y * y) * (1 + 0.3 * torch.sin(3 * t)) - 0.2 * w
        return torch.stack([-z * y + torch.sin(t) * k[0], k[1] * y - w * z, held], -1)

    return func


def loss_and_gradients(sensealg: Any, method: str, turn: Tensor, mass: Tensor, batched: bool) -> list[Tensor]:
    """The loss, and its gradients in y0, the parameters, both ends of the span and the save times."""
    k = torch.tensor([0.5, 1.3], requires_grad=True)
    y0 = torch.tensor([1.0, 0.5, 1.5], requires_grad=True)
    ends = [torch.tensor(t, requires_grad=True) for t in (0.1, 1.0)]
    saves = torch.tensor([0.1, 0.4, 0.8, 1.0], requires_grad=True)
    inner = driven(k)
    problem = pdf.ODEProblem(
        lambda t, u: inner(t, u @ turn) @ turn.T,
        torch.stack([y0, 1.5 * y0]) if batched else y0,
        ends,
        batched=batched,
        mass_matrix=turn @ mass @ turn.T,
    )
    sol = pdf.solve(problem, method, saveat=saves, rtol=1e-7, atol=1e-8, sensealg=sensealg, initialise="solve")
    loss = (sol.ys.square() * torch.tensor([1.0, 2.0, 3.0])).sum()
    loss.backward()
    return [loss.detach(), *(x.grad for x in (y0, k, *ends, saves))]  # type: ignore[misc]


@pytest.mark.parametrize("turn, batched", [(torch.eye(3, dtype=torch.float64), True), (TURN, False)])
def test_all_adjoints_agree(turn: Tensor, batched: bool) -> None:
    exact = loss_and_gradients("DiscreteAdjoint", "rodas5p", turn, MIXED, batched)
    for sensealg, method in (
        (pdf.DiscreteAdjoint(checkpoints=3), "rodas5p"),
        ("GaussAdjoint", "rodas5p"),
        (pdf.GaussAdjoint(checkpointing=True), "rodas5p"),
        ("QuadratureAdjoint", "kvaerno5"),
        ("InterpolatingAdjoint", "rodas5p"),
    ):
        found = loss_and_gradients(sensealg, method, turn, MIXED, batched)
        for a, b in zip(found, exact, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(exact[1].abs().max())), (sensealg, method)


def test_adjoints_with_a_matrix_that_has_an_inverse() -> None:
    mass = torch.tensor([[1.0, 0.2, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.7]])
    exact = loss_and_gradients("DiscreteAdjoint", "rodas5p", TURN, mass, False)
    for sensealg in ("GaussAdjoint", "InterpolatingAdjoint"):
        found = loss_and_gradients(sensealg, "rodas5p", TURN, mass, False)
        for a, b in zip(found, exact, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(exact[1].abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """With steps that do not depend on the parameters: the derivative of the numbers themselves."""
    mass = MIXED
    sensealg = pdf.DiscreteAdjoint(second_order=True)

    def end(y0: Tensor, k: Tensor, m: Tensor) -> Tensor:
        matrix = torch.cat([m, torch.zeros(1, 3)])
        problem = pdf.ODEProblem(driven(k), y0, (0.0, 0.02), mass_matrix=matrix)
        # Every step is accepted at dt_min, whatever its error; rtol is what Newton's method solves to.
        fixed: dict[str, Any] = {"dt": 0.01, "dt_min": 0.01, "dt_max": 0.01 + 1e-12, "rtol": 1e-8, "atol": 1e-8}
        return pdf.solve(problem, name, sensealg=sensealg, initialise="solve", saveat=[0.015, 0.02], **fixed).ys

    arguments = (torch.tensor([1.0, 0.5, 1.5]), torch.tensor([0.5, 1.3]), mass[:2].clone())
    arguments = tuple(x.requires_grad_() for x in arguments)
    assert torch.autograd.gradcheck(end, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda y0, k: end(y0, k, mass[:2]), arguments[:2], fast_mode=True)


def test_the_algebraic_start_has_no_gradient_of_its_own() -> None:
    """It is a function of the rest and of the parameters, whether it was solved for or checked."""
    for policy in ("check", "solve"):
        k = torch.tensor([0.5, 1.3], requires_grad=True)
        consistent = 1.3 * (1 + 1.0) + 0.2 * 0.5
        y0 = torch.tensor([1.0, 0.5, consistent], requires_grad=True)
        problem = pdf.ODEProblem(driven(k), y0, (0.0, 1.0), mass_matrix=LAST_IS_ALGEBRAIC)
        z = pdf.solve(problem, "rodas5p", initialise=policy, saveat=[0.0, 1.0]).ys[0, 2]
        found = torch.autograd.grad(z, (y0, k))
        assert torch.allclose(found[0], torch.tensor([2.6, 0.2, 0.0]))
        assert torch.allclose(found[1][1], torch.tensor(2.0))


def test_torch_func_transforms() -> None:
    def end(k: Tensor) -> Tensor:
        problem = pdf.ODEProblem(
            driven(k), torch.tensor([1.0, 0.5, 1.5]), (0.0, 0.5), mass_matrix=LAST_IS_ALGEBRAIC
        )
        return pdf.solve(problem, "rodas5p", rtol=1e-8, atol=1e-10, initialise="solve", save_everystep=False).ys[-1]

    k = torch.tensor([0.5, 1.3])
    by_rows = torch.autograd.functional.jacobian(end, k)
    assert torch.allclose(torch.func.jacrev(end)(k), by_rows, rtol=1e-7)
    assert torch.allclose(torch.func.jacfwd(end)(k), by_rows, rtol=1e-7)
    both = torch.stack([k, 1.2 * k])
    assert torch.allclose(torch.func.vmap(end)(both)[1], end(both[1]), rtol=1e-5)


def test_third_derivatives_are_refused() -> None:
    y0 = torch.tensor([1.0, 0.5, 1.5], requires_grad=True)
    k = torch.tensor([0.5, 1.3])
    problem = pdf.ODEProblem(driven(k), y0, (0.0, 0.2), mass_matrix=LAST_IS_ALGEBRAIC)
    found = pdf.solve(problem, "rodas5p", initialise="solve", rtol=1e-2).ys[-1].sum()
    for _ in range(2):
        found = torch.autograd.grad(found, y0, create_graph=True)[0].sum()
    with pytest.raises(GradientError):
        torch.autograd.grad(found, y0)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matrix, says",
    [
        (torch.ones(2, 3), r"shape \(2, 3\).*must be \(2, 2\)"),
        (torch.eye(3), r"shape \(3, 3\).*must be \(2, 2\)"),
        (torch.ones(2), r"shape \(2,\)"),
        ([[1.0, 0.0], [0.0, 1.0]], "is a list"),
        (torch.eye(2, dtype=torch.complex128), "both must be real"),
        (torch.eye(2, dtype=torch.int64), "floating"),
        (torch.eye(2) * math.nan, "NaN"),
    ],
)
def test_matrices_that_are_none(matrix: Any, says: str) -> None:
    with pytest.raises(MassMatrixError, match=says):
        pdf.ODEProblem(algebraic.product, torch.ones(2), (0.0, 1.0), mass_matrix=matrix)


def test_a_matrix_of_a_row_says_batched() -> None:
    with pytest.raises(MassMatrixError, match="batched=True"):
        pdf.ODEProblem(algebraic.product, torch.ones(4, 2), (0.0, 1.0), mass_matrix=PRODUCT_MASS)


@pytest.mark.parametrize("method", ["tsit5", "rk4", "velocity_verlet", "implicit_euler", "AutoTsit5(Rosenbrock23)"])
def test_methods_that_take_no_mass_matrix(method: str) -> None:
    problem = pdf.ODEProblem(algebraic.product, torch.ones(2), (0.0, 1.0), mass_matrix=PRODUCT_MASS)
    with pytest.raises(MassMatrixMethodError, match=r"cannot take a mass_matrix.*rodas5p"):
        pdf.solve(problem, method, dt=0.1)


def test_other_things_that_do_not_go_with_a_mass_matrix() -> None:
    problem = pdf.ODEProblem(algebraic.product, torch.ones(3, 2), (0.0, 1.0), True, PRODUCT_MASS)
    with pytest.raises(MassMatrixMethodError, match="per_sample"):
        pdf.solve(problem, "rodas5p", per_sample=True)
    with pytest.raises(UnsupportedError, match="mass matrix is not compiled"):
        pdf.solve(problem, "rodas5p", backend="compiled")
    for sensealg in ("BacksolveAdjoint", "ForwardSensitivity"):
        with pytest.raises(UnsupportedError, match=f"{sensealg} with a mass_matrix"):
            pdf.solve(problem, "rodas5p", sensealg=sensealg)
    learnt = pdf.ODEProblem(algebraic.product, torch.ones(2), (0.0, 1.0), mass_matrix=PRODUCT_MASS.requires_grad_())
    try:
        with pytest.raises(UnsupportedError, match="no gradient with respect to mass_matrix"):
            pdf.solve(learnt, "rodas5p", sensealg="GaussAdjoint")
    finally:
        PRODUCT_MASS.requires_grad_(False)
    with pytest.raises(UnsupportedError, match="shadowing"):
        pdf.shadowing_average(problem, lambda y: y[0], dt=0.1)


def test_a_singular_iteration_matrix_on_the_way_ends_the_solve() -> None:
    """0 = z^2 - y with y' = -1 has no solution beyond y = 0, where dg/dz = 2 z vanishes."""
    func = lambda t, u: torch.stack([-torch.ones_like(u[0]), u[1] ** 2 - u[0]])  # noqa: E731
    problem = pdf.ODEProblem(func, torch.ones(2), (0.0, 2.0), mass_matrix=PRODUCT_MASS)
    sol = pdf.solve(problem, "rodas5p", throw=False)
    assert not sol.success
    assert float(sol.ts[-1]) == pytest.approx(1.0, abs=1e-3)


# -- the layer ----------------------------------------------------------------------------------


class Reactions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rates = torch.nn.Parameter(torch.tensor([0.04, 30.0, 10.0]))

    def forward(self, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        k = self.rates
        return torch.stack([-k[0] * a + k[2] * b * c, k[0] * a - k[2] * b * c - k[1] * b * b], -1)


def conserved(y: Tensor) -> Tensor:
    return y.sum(-1, keepdim=True) - 1.0


def test_the_layer_is_its_problem_row_by_row() -> None:
    tight: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-9}
    layer = pdf.NeuralMassMatrixODE(Reactions(), conserved, (0.0, 5.0), LAST_IS_ALGEBRAIC, saveat=[1.0, 5.0], **tight)
    starts = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    together = layer(starts)
    assert together.shape == (2, 2, 3)
    for i in range(2):
        assert torch.allclose(together[:, i], layer(starts[i]), rtol=1e-5)
    assert torch.allclose(together.sum(-1), torch.ones(2, 2), atol=1e-12)
    assert list(layer.state_dict()) == ["mass_matrix", "model.rates"]
    assert "method=rodas5p" in repr(layer)
    together.square().sum().backward()
    assert layer.model.rates.grad is not None and bool((layer.model.rates.grad != 0).all())
    sol = layer.solve(starts)
    assert torch.equal(sol.ys, together) and sol.dense is not None
    assert pdf.compare(layer, starts[0], backends=["eager"], repeats=1).rows[0].gradient < 1e-3


def test_the_layer_takes_time_and_learns_its_matrix() -> None:
    matrix = torch.nn.Parameter(torch.diag(torch.tensor([2.0, 0.0])))
    model, constraint = lambda t, u: -u[..., :1] * t, lambda t, u: u[..., 1:] - t * u[..., :1]
    layer = pdf.NeuralMassMatrixODE(model, constraint, (0.0, 1.0), matrix, "rodas5p", rtol=1e-8)
    end = layer(torch.tensor([1.0, 0.0]))
    assert end[0].item() == pytest.approx(math.exp(-0.25), rel=1e-6)
    end[0].backward()
    assert matrix.grad is not None  # the end is exp(-1 / (2 m))
    assert float(matrix.grad[0, 0]) == pytest.approx(math.exp(-0.25) / 8, rel=1e-5)
    assert [name for name, _ in layer.named_parameters()] == ["mass_matrix"]


def test_what_the_layer_refuses() -> None:
    with pytest.raises(MassMatrixError, match=r"mass_matrix is \(2, 3\)"):
        pdf.NeuralMassMatrixODE(Reactions(), conserved, (0.0, 1.0), torch.ones(2, 3))
    with pytest.raises(UnknownOptionError, match="batched"):
        pdf.NeuralMassMatrixODE(Reactions(), conserved, (0.0, 1.0), LAST_IS_ALGEBRAIC, batched=True)
    start = torch.tensor([1.0, 0.0, 0.0])
    for constraint, says in (
        (lambda y: y.sum(-1) - 1, r"constraint returned \(\)"),
        (lambda y: y, "model returned 2 equations and constraint 3 for 3 states"),
    ):
        with pytest.raises(ShapeError, match=says):
            pdf.NeuralMassMatrixODE(Reactions(), constraint, (0.0, 1.0), LAST_IS_ALGEBRAIC)(start)
    with pytest.raises(MassMatrixMethodError):
        pdf.NeuralMassMatrixODE(Reactions(), conserved, (0.0, 1.0), LAST_IS_ALGEBRAIC, "tsit5")(start)
    with pytest.raises(MassMatrixError, match=r"must be \(2, 2\)"):
        pdf.NeuralMassMatrixODE(Reactions(), conserved, (0.0, 1.0), LAST_IS_ALGEBRAIC)(torch.ones(2))
