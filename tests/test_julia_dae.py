"""Mass matrices and fully implicit equations by Julia, against the native backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import algebraic
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import InconsistentStateError, MassMatrixMethodError, UnsupportedError

pytestmark = pytest.mark.julia

D = torch.float64
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
MIXED = torch.tensor([[1.0, 0.2, 0.0], [0.3, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=D)


def driven(k: Tensor) -> Any:
    def func(t: Tensor, u: Tensor) -> Tensor:
        y, w, z = u.unbind(-1)
        held = z - k[1] * (1 + y * y) * (1 + 0.3 * torch.sin(3 * t)) - 0.2 * w
        return torch.stack([-z * y + torch.sin(t) * k[0], k[1] * y - w * z, held], -1)

    return func


def pulled(backend: str, method: str, sensealg: Any, batched: bool = False, mass: Tensor = MIXED) -> list[Tensor]:
    """The states, and the gradients in y0, the parameters, both ends of the span and the save times."""
    k = torch.tensor([0.5, 1.3], dtype=D, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5, 1.5], dtype=D, requires_grad=True)
    ends = [torch.tensor(t, dtype=D, requires_grad=True) for t in (0.1, 1.0)]
    saves = torch.tensor([0.1, 0.4, 0.8, 1.0], dtype=D, requires_grad=True)
    start = torch.stack([y0, 1.5 * y0]) if batched else y0
    problem = pdf.ODEProblem(driven(k), start, ends, batched=batched, mass_matrix=mass)
    options: dict[str, Any] = {"saveat": saves, "initialise": "solve", "dense": False, **TIGHT}
    sol = pdf.solve(problem, method, backend=backend, sensealg=sensealg, **options)
    loss = (sol.ys.square() * torch.tensor([1.0, 2.0, 3.0], dtype=D)).sum()
    return [sol.ys.detach(), *torch.autograd.grad(loss, (y0, k, *ends, saves), materialize_grads=True)]


REGULAR = torch.tensor([[1.0, 0.2, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 0.7]], dtype=D)


@pytest.mark.parametrize("batched, mass", [(False, MIXED), (True, MIXED), (False, REGULAR)])
def test_gradients_with_a_mass_matrix(batched: bool, mass: Tensor) -> None:
    """Singular, for each row of a batch, and with an inverse."""
    native = pulled("torch", "rodas5p", "DiscreteAdjoint", batched, mass)
    for a, b in zip(pulled("julia", "rodas5p", "GaussAdjoint", batched, mass), native, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(native[1].abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("method, sensealg", [("rodas5p", "QuadratureAdjoint"), ("FBDF", "GaussAdjoint")])
def test_gradients_in_other_ways(method: str, sensealg: str) -> None:
    native = pulled("torch", "rodas5p", "DiscreteAdjoint")
    for a, b in zip(pulled("julia", method, sensealg), native, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(native[1].abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("method", ["rodas5p", "FBDF"])
def test_rober_with_its_conservation_law(method: str) -> None:
    start = torch.tensor([1.0, 0.0, 0.0], dtype=D)
    problem = pdf.ODEProblem(algebraic.rober, start, (0.0, 1e4), mass_matrix=algebraic.LAST_IS_ALGEBRAIC)
    sol = pdf.solve(problem, method, backend="julia", rtol=1e-8, atol=1e-12, save_everystep=False)
    assert torch.allclose(sol.ys[-1], algebraic.rober_by_scipy(1e4), rtol=1e-5, atol=0)
    assert sol.stats.backend == "julia"
    with pytest.raises(InconsistentStateError):
        wrong = pdf.ODEProblem(algebraic.rober, start * 2, (0.0, 1e4), mass_matrix=algebraic.LAST_IS_ALGEBRAIC)
        pdf.solve(wrong, method, backend="julia")
    # The same function without a matrix, right afterwards: nothing of it is left.
    plain = pdf.ODEProblem(algebraic.rober, torch.tensor([0.5, 0.0, 0.5], dtype=D), (0.0, 1e-3))
    one, two = (pdf.solve(plain, "rodas5p", backend=b, saveat=[1e-3], **TIGHT).ys for b in ("julia", "torch"))
    assert torch.allclose(one, two, rtol=1e-7)


@torch.no_grad()
def test_a_fully_implicit_equation() -> None:
    def residual(t: Tensor, u: Tensor, du: Tensor) -> Tensor:
        y, z = u.unbind(-1)
        slope, p = du[..., 0], -z * y
        return torch.stack([slope + slope**3 - p - p**3, algebraic.product(t, u)[..., 1]], -1)

    start = algebraic.product_solution(0.0)
    problem = pdf.DAEProblem(residual, start, torch.tensor([-0.9, 0.0], dtype=D), (0.0, 1.0), [True, False])
    sol = pdf.solve(problem, backend="julia", saveat=[0.5, 1.0], initialise="solve", rtol=1e-8, atol=1e-10)
    exact = torch.stack([algebraic.product_solution(t) for t in (0.5, 1.0)])
    assert torch.allclose(sol.ys, exact, rtol=1e-5)
    assert sol.stats.backend == "julia" and sol.stats.method == "DFBDF"
    assert torch.allclose(sol(0.75), algebraic.product_solution(0.75), rtol=1e-3)
    dose = pdf.PresetTimeCallback([0.5], lambda t, u: u * torch.tensor([2.0, 4.0], dtype=D))
    both = [
        pdf.solve(problem, backend=b, saveat=[1.0], callbacks=dose, initialise="solve", rtol=1e-8, atol=1e-10).ys
        for b in ("julia", "torch")
    ]
    assert torch.allclose(*both, rtol=1e-5)


def implicit_pulled(backend: str, sensealg: str | None = None) -> list[Tensor]:
    """The states, and the gradients in y0, the parameters, both ends of the span and the save times; a dose between."""
    k = torch.tensor([0.5, 1.3], dtype=D, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5, 1.5], dtype=D, requires_grad=True)
    ends = [torch.tensor(t, dtype=D, requires_grad=True) for t in (0.1, 1.0)]
    saves = torch.tensor([0.1, 0.4, 0.8, 1.0], dtype=D, requires_grad=True)
    field = driven(k)

    def residual(t: Tensor, u: Tensor, du: Tensor) -> Tensor:
        wanted = field(t, u)
        return torch.cat([du[:2] + 0.1 * du[:2] ** 3 - wanted[:2], wanted[2:]])

    problem = pdf.DAEProblem(residual, y0, torch.zeros(3, dtype=D), ends, [True, True, False])
    dose = pdf.PresetTimeCallback([0.5], lambda t, u: u * torch.tensor([1.2, 1.0, 1.0], dtype=D))
    options: dict[str, Any] = {"callbacks": dose, "initialise": "solve", "rtol": 1e-8, "atol": 1e-9}
    sol = pdf.solve(problem, backend=backend, saveat=saves, sensealg=sensealg, **options)
    if backend == "julia":
        assert (sol.stats.method, sol.stats.sensealg) == ("DFBDF", "ForwardDiffSensitivity")
    loss = (sol.ys.square() * torch.tensor([1.0, 2.0, 3.0], dtype=D)).sum()
    return [sol.ys.detach(), *torch.autograd.grad(loss, (y0, k, *ends, saves), materialize_grads=True)]


@pytest.mark.parametrize("sensealg", [None, "ForwardDiffSensitivity"])
def test_gradients_of_a_fully_implicit_equation(sensealg: str | None) -> None:
    native = implicit_pulled("torch")
    for a, b in zip(implicit_pulled("julia", sensealg), native, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(native[1].abs().max()))


def test_what_there_is_not() -> None:
    start = algebraic.product_solution(0.0)
    problem = pdf.ODEProblem(algebraic.product, start, (0.0, 1.0), mass_matrix=algebraic.PRODUCT_MASS)
    with torch.no_grad():
        for method in ("Tsit5()", "DFBDF", "AutoTsit5(Rodas5P())"):
            with pytest.raises(MassMatrixMethodError, match="cannot take a mass_matrix"):
                pdf.solve(problem, method, backend="julia")
    start.requires_grad_()
    grown = pdf.ODEProblem(algebraic.product, start, (0.0, 1.0), mass_matrix=algebraic.PRODUCT_MASS)
    for sensealg in ("BacksolveAdjoint", "InterpolatingAdjoint", pdf.GaussAdjoint(autojacvec="reversediff")):
        with pytest.raises(UnsupportedError, match=r"Adjoint.* with a mass_matrix.*GaussAdjoint"):
            pdf.solve(grown, "rodas5p", backend="julia", sensealg=sensealg)
    flipped = pdf.ODEProblem(
        lambda t, u: algebraic.product(t, u).flip(-1), start, (0.0, 1.0), mass_matrix=algebraic.PRODUCT_MASS.flip(0)
    )
    with pytest.raises(UnsupportedError, match="semi-explicit"):
        pdf.solve(flipped, "rodas5p", backend="julia")
    learnt = algebraic.PRODUCT_MASS.clone().requires_grad_()
    with pytest.raises(UnsupportedError, match="no gradient with respect to mass_matrix"):
        pdf.solve(pdf.ODEProblem(algebraic.product, start, (0.0, 1.0), mass_matrix=learnt), backend="julia")
    residual = lambda t, u, du: du + u  # noqa: E731
    implicit = pdf.DAEProblem(residual, start, -start, (0.0, 1.0))
    with pytest.raises(UnsupportedError, match=r"sensealg=GaussAdjoint.* with a DAEProblem does not exist"):
        pdf.solve(implicit, backend="julia", sensealg="GaussAdjoint")
    with torch.no_grad(), pytest.raises(MassMatrixMethodError, match="'DFBDF'"):
        pdf.solve(implicit, "FBDF", backend="julia")


@torch.no_grad()
def test_vmap_is_refused() -> None:
    def end(y0: Tensor) -> Tensor:
        problem = pdf.ODEProblem(algebraic.product, y0, (0.0, 1.0), mass_matrix=algebraic.PRODUCT_MASS)
        return pdf.solve(problem, "rodas5p", backend="julia", saveat=[1.0]).ys[-1]

    with pytest.raises(UnsupportedError, match=r"a mass_matrix with backend='julia' inside torch\.func"):
        torch.func.vmap(end)(torch.stack([algebraic.product_solution(0.0)] * 2))
