"""``residual(t, y, dy) = 0``: references, consistent starts, gradients, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from problems import algebraic
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.backends.common.implicit_rhs import ImplicitRhs
from pydiffeqflux.backends.common.settle import Policy
from pydiffeqflux.backends.common.tolerances import Tolerances
from pydiffeqflux.backends.eager.bdf import coefficients as ndf
from pydiffeqflux.backends.eager.bdf.qndf import Carry, Qndf
from pydiffeqflux.backends.eager.convergence import NewtonSettings
from pydiffeqflux.errors import (
    DtypeError,
    HighIndexError,
    InconsistentStateError,
    InitialisationError,
    InvalidArgumentError,
    MassMatrixMethodError,
    ShapeError,
    UnknownOptionError,
    UnsupportedError,
)

TIGHT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-11}


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def implicit(func: Any, count: int) -> Any:
    """The residual of ``M y' = f`` with ones for the first ``count`` entries."""

    def residual(t: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        mask = torch.arange(y.shape[-1]) < count
        return torch.where(mask, dy, 0.0) - func(t, y)

    return residual


def cubic(t: Tensor, u: Tensor, du: Tensor) -> Tensor:
    """y' + y'^3 = p + p^3 with p = -z y, and z = 1 + t^2 through y: y' = p, but not explicitly."""
    y, z = u.unbind(-1)
    slope, p = du[..., 0], -z * y
    return torch.stack([slope + slope**3 - p - p**3, algebraic.product(t, u)[..., 1]], -1)


def product_slope(t: float) -> Tensor:
    y = algebraic.product_solution(t)
    return torch.stack([-(1 + t * t) * y[0], torch.tensor(2 * t)])


def cubic_problem(**options: Any) -> pdf.DAEProblem:
    start = algebraic.product_solution(0.0)
    return pdf.DAEProblem(cubic, start, product_slope(0.0), (0.0, 1.0), [True, False], **options)


# -- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(1, 6))
@torch.no_grad()
def test_order_of_each_formula(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
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
        rhs = ImplicitRhs(cubic_problem(), Policy(Tolerances(1e-12, 1e-14), False))
        carry = Carry(product_slope(0.0), table, dt, order, 0, None)
        for i in range(n):
            step = method.step(rhs, i * dt, dt, y, carry)
            assert step.converged
            y, carry = step.y1, step.carry
        ends.append((y - algebraic.product_solution(1.0)).abs())
    assert bool((torch.log2(ends[0] / ends[1]) > order - 0.3).all())


@torch.no_grad()
def test_an_equation_that_is_not_linear_in_the_derivative() -> None:
    sol = pdf.solve(cubic_problem(), saveat=[0.5, 1.0], **TIGHT)
    exact = torch.stack([algebraic.product_solution(t) for t in (0.5, 1.0)])
    assert torch.allclose(sol.ys, exact, rtol=1e-6)
    assert torch.allclose(sol(0.7), algebraic.product_solution(0.7), rtol=1e-5)
    assert sol.stats.method == "qndf" and sol.stats.backend == "torch"


@torch.no_grad()
def test_rober_with_its_conservation_law() -> None:
    """Against SciPy's Radau, at 1e-10, on the three differential equations."""
    start, slope = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-0.04, 0.04, 0.0])
    problem = pdf.DAEProblem(implicit(algebraic.rober, 2), start, slope, (0.0, 1e4), [True, True, False])
    sol = pdf.solve(problem, rtol=1e-8, atol=1e-12, save_everystep=False)
    assert torch.allclose(sol.ys[-1], algebraic.rober_by_scipy(1e4), rtol=2e-6, atol=0)
    assert abs(float(sol.ys[-1].sum()) - 1) < 1e-12


@torch.no_grad()
def test_a_pendulum_swings_with_its_exact_period() -> None:
    angle = 1.5
    start, period = algebraic.pendulum_start(angle), algebraic.pendulum_period(angle)
    flags = [True, True, True, True, False]
    problem = pdf.DAEProblem(implicit(algebraic.pendulum, 4), start, torch.zeros(5), (0.0, period), flags)
    sol = pdf.solve(problem, initialise="solve", **TIGHT)
    assert torch.allclose(sol.ys[-1], start, atol=1e-5)


@torch.no_grad()
def test_the_same_numbers_as_with_a_mass_matrix() -> None:
    """QNDF on M y' = f, written both ways: one formula, one Newton matrix, the same steps (but for Newton's rest)."""
    start = algebraic.product_solution(0.0)
    slope = product_slope(0.0)
    one = pdf.solve(
        pdf.DAEProblem(implicit(algebraic.product, 1), start, slope, (0.0, 1.0), [True, False]), "qndf", **TIGHT
    )
    two = pdf.solve(
        pdf.ODEProblem(algebraic.product, start, (0.0, 1.0), mass_matrix=algebraic.PRODUCT_MASS), "qndf", **TIGHT
    )
    assert len(one.ts) == len(two.ts)
    assert torch.allclose(one.ys, two.ys, rtol=1e-7)


@torch.no_grad()
def test_rows_structures_and_single_precision() -> None:
    starts = algebraic.product_solution(0.0).expand(3, 2)
    rows = pdf.DAEProblem(cubic, starts, product_slope(0.0).expand(3, 2), (0.0, 1.0), [True, False], batched=True)
    assert torch.allclose(pdf.solve(rows, **TIGHT).ys[-1], algebraic.product_solution(1.0).expand(3, 2), rtol=1e-6)

    def apart(t: Tensor, u: Any, du: Any) -> Any:
        first, second = cubic(t, torch.cat([u["y"], u["z"]]), torch.cat([du["y"], du["z"]])).split(1)
        return {"y": first, "z": second}

    pair = lambda x: dict(zip("yz", x.split(1), strict=True))  # noqa: E731
    flags = {"y": torch.tensor([True]), "z": torch.tensor([False])}
    start, slope = pair(algebraic.product_solution(0.0)), pair(product_slope(0.0))
    sol = pdf.solve(pdf.DAEProblem(apart, start, slope, (0.0, 1.0), flags), **TIGHT)
    assert torch.allclose(torch.cat([sol.ys["y"][-1], sol.ys["z"][-1]]), algebraic.product_solution(1.0), rtol=1e-6)
    single = pdf.DAEProblem(cubic, starts[0].float(), product_slope(0.0).float(), (0.0, 1.0), [True, False])
    found = pdf.solve(single, rtol=1e-4, atol=1e-6).ys[-1]
    assert found.dtype == torch.float32 and torch.allclose(found.double(), algebraic.product_solution(1.0), rtol=2e-3)


# -- consistent states --------------------------------------------------------------------------


def test_an_inconsistent_start_is_refused_with_its_residual() -> None:
    start, slope = algebraic.product_solution(0.0), product_slope(0.0)
    off = torch.tensor([0.0, 2.0])
    for y0, dy0, residual in ((start + off, slope, 68.0), (start, slope * 0, 2.0)):
        problem = pdf.DAEProblem(cubic, y0, dy0, (0.0, 1.0), [True, False])
        with pytest.raises(InconsistentStateError, match="initialise='solve'") as caught:
            pdf.solve(problem)
        assert caught.value.residual == pytest.approx(residual if residual == 2.0 else (3 + 27) - 2, rel=1e-12)
        sol = pdf.solve(problem, initialise="solve", **TIGHT)
        assert torch.allclose(sol.ys[0], start, atol=1e-12)
        assert torch.allclose(sol.ys[-1], algebraic.product_solution(1.0), rtol=1e-6)


def test_states_after_a_dose_are_consistent() -> None:
    dose = pdf.PresetTimeCallback([0.5], lambda t, u: u * torch.tensor([2.0, 1.0]))
    with pytest.raises(InconsistentStateError, match=r"t=0\.5"):
        pdf.solve(cubic_problem(), callbacks=dose, **TIGHT)
    sol = pdf.solve(cubic_problem(), callbacks=dose, initialise="solve", **TIGHT)
    for t, u in zip(sol.ts, sol.ys.detach(), strict=True):
        assert abs(algebraic.product(t, u)[1]) < 1e-7


def test_a_consistent_dose_needs_no_new_derivative() -> None:
    """Only the state is the user's to give after a jump; the derivative follows from it."""
    dose = pdf.PresetTimeCallback([0.5], lambda t, u: u * torch.tensor([2.0, 4.0]))
    sol = pdf.solve(cubic_problem(), callbacks=dose, **TIGHT)
    assert sol.success


def test_an_index_above_one_is_named() -> None:
    start = algebraic.pendulum_start(1.0)
    flags = [True, True, True, True, False]
    problem = pdf.DAEProblem(implicit(algebraic.pendulum_index_3, 4), start, torch.zeros(5), (0.0, 1.0), flags)
    with pytest.raises(HighIndexError, match="index is above 1"):
        pdf.solve(problem, initialise="solve")
    wrong = pdf.DAEProblem(cubic, torch.ones(2), torch.zeros(2), (0.0, 1.0))  # z is no differential variable
    with pytest.raises(HighIndexError, match="differential_vars names the wrong entries"):
        pdf.solve(wrong, initialise="solve")


def test_a_start_from_which_nothing_consistent_is_found() -> None:
    func = lambda t, u, du: torch.stack([du[0] ** 2 + du[0] + 1.0, u[1] - u[0]])  # noqa: E731
    problem = pdf.DAEProblem(func, torch.ones(2), torch.zeros(2), (0.0, 1.0), [True, False])
    with pytest.raises(InitialisationError):
        pdf.solve(problem, initialise="solve")


# -- gradients ----------------------------------------------------------------------------------


def weighted(k: Tensor) -> Any:
    def residual(t: Tensor, u: Tensor, du: Tensor) -> Tensor:
        y, z = u.unbind(-1)
        slope = du[..., 0]
        return torch.stack([k[0] * slope * (1 + 0.1 * slope**2) + z * y, z - (1 + t * t) * y * k[1]], -1)

    return residual


def test_gradients_are_those_of_finite_differences() -> None:
    """With steps that do not depend on the parameters: the derivative of the numbers themselves, twice."""

    def end(y0: Tensor, k: Tensor) -> Tensor:
        problem = pdf.DAEProblem(weighted(k), y0, torch.tensor([-1.0, 0.0]), (0.0, 0.004), [True, False])
        fixed: dict[str, Any] = {"dt": 2e-3, "dt_min": 2e-3, "dt_max": 2e-3 + 1e-12, "rtol": 1e-8, "atol": 1e-8}
        sensealg = pdf.DiscreteAdjoint(second_order=True)
        return pdf.solve(problem, sensealg=sensealg, initialise="solve", saveat=[0.0, 0.003, 0.004], **fixed).ys

    arguments = torch.tensor([1.0, 1.0], requires_grad=True), torch.tensor([1.1, 0.9], requires_grad=True)
    assert torch.autograd.gradcheck(end, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(end, arguments, fast_mode=True)


@pytest.mark.parametrize("sensealg", [None, pdf.DiscreteAdjoint(checkpoints=3)])
def test_gradients_of_everything_along_a_solution(sensealg: Any) -> None:
    """Against the same equation with a mass matrix, by another method."""
    both = []
    for form in ("implicit", "mass"):
        y0, k = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1.1, 0.9], requires_grad=True)
        ends = [torch.tensor(t, requires_grad=True) for t in (0.1, 1.0)]
        saves = torch.tensor([0.1, 0.5, 1.0], requires_grad=True)
        field = lambda t, u, k=k: torch.stack(  # noqa: E731
            [-u[1] * u[0] / k[0], u[1] - (1 + t * t) * u[0] * k[1]]
        )
        problem: Any
        if form == "mass":
            problem = pdf.ODEProblem(field, y0, ends, mass_matrix=algebraic.PRODUCT_MASS)
            sol = pdf.solve(problem, "rodas5p", saveat=saves, initialise="solve", **TIGHT)
        else:
            problem = pdf.DAEProblem(implicit(field, 1), y0, torch.zeros(2), ends, [True, False])
            sol = pdf.solve(problem, saveat=saves, initialise="solve", sensealg=sensealg, **TIGHT)
        (sol.ys.square() * torch.tensor([1.0, 2.0])).sum().backward()
        both.append([x.grad for x in (y0, k, *ends, saves)])
    for a, b in zip(*both, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert both[0][0][1] == 0  # the algebraic start is a function of the rest


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "rodas5p", "kencarp4"])
def test_methods_that_cannot(method: str) -> None:
    with pytest.raises(MassMatrixMethodError, match=r"cannot solve a DAEProblem.*'qndf'"):
        pdf.solve(cubic_problem(), method)


def test_other_things_that_do_not_go_with_it() -> None:
    with pytest.raises(UnsupportedError, match="per_sample"):
        pdf.solve(cubic_problem(), per_sample=True)
    for sensealg in ("GaussAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint", "ForwardSensitivity"):
        with pytest.raises(UnsupportedError, match=f"{sensealg} with a DAEProblem"):
            pdf.solve(cubic_problem(), sensealg=sensealg)
    with pytest.raises(UnsupportedError, match="DAEProblem is not compiled"):
        pdf.solve(cubic_problem(), backend="compiled")


def test_problems_that_are_none() -> None:
    ones, flags = torch.ones(2), [True, False]
    span = (0.0, 1.0)
    with pytest.raises(InvalidArgumentError, match="residual=7"):
        pdf.DAEProblem(7, ones, ones, span)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"dy0 is \(3,\)"):
        pdf.DAEProblem(cubic, ones, torch.ones(3), span)
    with pytest.raises(DtypeError, match=r"dy0 is torch\.float32"):
        pdf.DAEProblem(cubic, ones, ones.float(), span)
    with pytest.raises(DtypeError, match="complex"):
        pdf.DAEProblem(cubic, ones + 0j, ones + 0j, span)
    with pytest.raises(ShapeError, match="broadcast"):
        pdf.DAEProblem(cubic, ones, ones, span, [True, False, True])
    with pytest.raises(InvalidArgumentError, match="must be booleans"):
        pdf.DAEProblem(cubic, ones, ones, span, [1, 0])
    with pytest.raises(ShapeError, match="structure"):
        pdf.DAEProblem(cubic, {"y": ones}, {"y": ones}, span, {"y": torch.ones(2)})
    with pytest.raises(ShapeError, match="the residual returned"):
        pdf.solve(pdf.DAEProblem(lambda t, y, dy: dy[0], ones, ones, span, flags))
    with pytest.raises(ShapeError, match="the residual returned float"):
        pdf.solve(pdf.DAEProblem(lambda t, y, dy: 1.0, ones, ones, span, flags))


# -- the layer ----------------------------------------------------------------------------------


class Slow(torch.nn.Module):
    """y' = -k z, as a residual of (y, z, y', z')."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, both: Tensor) -> Tensor:
        return both[..., 2:3] + self.rate * both[..., 1:2]


def equal(y: Tensor) -> Tensor:
    return y[..., 1:] - y[..., :1]


def test_the_layer_solves_and_learns() -> None:
    layer = pdf.NeuralDAE(Slow(), equal, (0.0, 2.0), [True, False], saveat=[1.0, 2.0], **TIGHT)
    ends = layer(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    exact = torch.exp(torch.tensor([-0.5, -1.0]))
    assert torch.allclose(ends, (exact[:, None, None] * torch.tensor([[1.0], [2.0]])).expand(2, 2, 2), rtol=1e-5)
    ends[-1, 0, 0].backward()
    assert layer.model.rate.grad is not None
    assert layer.model.rate.grad.item() == pytest.approx(-2 * math.exp(-1), rel=1e-5)
    start, slope = torch.tensor([1.0, 1.0]), torch.tensor([-0.5, -0.5])
    strict = pdf.NeuralDAE(Slow(), equal, (0.0, 2.0), torch.tensor([True, False]), initialise="check", **TIGHT)
    assert strict(start, slope)[0].item() == pytest.approx(math.exp(-1), rel=1e-5)
    assert strict.solve(start, slope).dense is not None
    with pytest.raises(InconsistentStateError):
        strict(start)


def test_what_the_layer_refuses() -> None:
    for flags in ([], [False, False], [1, 0]):
        with pytest.raises(InvalidArgumentError, match="differential_vars"):
            pdf.NeuralDAE(Slow(), equal, (0.0, 1.0), flags)
    with pytest.raises(UnknownOptionError, match="batched"):
        pdf.NeuralDAE(Slow(), equal, (0.0, 1.0), [True, False], batched=True)
    with pytest.raises(ShapeError, match=r"constraint returned \(2,\).*must return \(1,\)"):
        pdf.NeuralDAE(Slow(), lambda y: y, (0.0, 1.0), [True, False])(torch.ones(2))
