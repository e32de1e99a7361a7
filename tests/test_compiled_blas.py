"""Large matrix products by the BLAS library: the same numbers as by compiled loops, however the matrices lie."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pydiffeqflux import ODEProblem, solve
from pydiffeqflux.backends.compiled import blas, products
from pydiffeqflux.backends.compiled.emit import emit
from pydiffeqflux.backends.compiled.model import Model, model_of

MODELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "layer": lambda y, a, b: torch.nn.functional.linear(y, a, b[0, 0]),
    "product": lambda y, a, b: y @ a,
    "turned": lambda y, a, b: y @ a.T,
    "left": lambda y, a, b: (a @ y.T).T,
    "both turned": lambda y, a, b: (a.T @ y.T).T,
    "batch": lambda y, a, b: (y.expand(3, *y.shape) @ b).sum(0),
    "part": lambda y, a, b: torch.cat([y[:, :5] @ a[2:7, 1:], y[:, :1]], 1),
}


def test_there_is_one() -> None:
    assert blas.addresses() is not None and set(blas.addresses() or ()) == {"pydiffeqflux_sgemm", "pydiffeqflux_dgemm"}


@pytest.mark.parametrize("find", [blas._torch, blas._scipy])
def test_both_libraries(find: object) -> None:
    for single in (True, False):
        address = find("sgemm" if single else "dgemm")  # type: ignore[operator]
        assert address is not None and blas._multiplies(address, single)


def test_one_that_is_wrong_is_not_used() -> None:
    nothing = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(lambda *args: None)
    address = ctypes.cast(nothing, ctypes.c_void_p).value
    assert address is not None and not blas._multiplies(address, False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_as_by_eager_torch(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "WANTS_BLAS", 1)
    monkeypatch.setattr(products, "NARROW", 1)

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((9, 9), (3, 9, 9)))

    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(MODELS[name](y, a, b))

    y0 = torch.randn(7, 9, dtype=dtype, requires_grad=True)
    model, _ = model_of(ODEProblem(func, y0, (0.0, 1.0)))
    assert isinstance(model, Model), model
    assert all("gemm(" in emit(model.traced.program(kernel))[0] for kernel in ("f", "vjp"))
    found = []
    for backend in ("compiled", "eager"):
        y0.grad = None
        ys = solve(ODEProblem(func, y0, (0.0, 1.0)), "rk4", dt=0.1, saveat=[1.0], dense=False, backend=backend).ys
        ys.square().sum().backward()
        found.append((ys.detach(), y0.grad))
    tol = 1e-10 if dtype is torch.float64 else 1e-4
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)


def test_large_products_only() -> None:
    sources = []
    for width in (8, 128):
        net = nn.Linear(width, width)
        model, _ = model_of(ODEProblem(lambda t, y, net=net: net(y), torch.randn(32, width), (0.0, 1.0)))
        assert isinstance(model, Model)
        sources.append("gemm(" in emit(model.traced.program("f"))[0])
        assert model.by_blas == sources[-1]
    assert sources == [False, True]
