"""``norm`` on ``backend="julia"``: how large an error is, as the user measures it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import ShapeError, UnsupportedError, UntraceableError

D = torch.float64
pytestmark = pytest.mark.julia


def rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def pair(dtype: torch.dtype = D) -> pdf.ODEProblem:
    """One easy state, and one that needs small steps."""
    rates = torch.tensor([0.1, 20.0], dtype=dtype)
    return pdf.ODEProblem(lambda t, y: torch.sin(rates * t) - y, torch.tensor([1.0, 0.5], dtype=dtype), (0.0, 10.0))


def solve(problem: pdf.ODEProblem, method: str = "tsit5", tol: float = 1e-6, **how: Any) -> pdf.Solution:
    return pdf.solve(problem, method, saveat=[5.0, 10.0], rtol=tol, atol=tol, backend="julia", dense=False, **how)


@pytest.mark.parametrize("method", ["tsit5", "rodas5p", "FBDF"])
def test_ten_times_the_norm_is_a_tenth_of_the_tolerance(method: str) -> None:
    loud, strict = solve(pair(), method, norm=lambda x: 10 * rms(x)), solve(pair(), method, 1e-7)
    assert loud.stats.naccept == strict.stats.naccept > solve(pair(), method).stats.naccept
    assert torch.allclose(loud.ys, strict.ys, rtol=1e-10, atol=1e-12)


def test_the_default_norm_written_out() -> None:
    written, default = solve(pair(torch.float32), tol=1e-4, norm=rms), solve(pair(torch.float32), tol=1e-4)
    assert written.ys.dtype == torch.float32 and written.stats.naccept == default.stats.naccept
    assert torch.allclose(written.ys, default.ys, rtol=1e-4, atol=1e-5)


def test_it_takes_the_shape_of_the_state() -> None:
    """Of two rows only the easy one counts."""
    rates = torch.tensor([[0.1], [20.0]], dtype=D)
    rows = pdf.ODEProblem(lambda t, y: torch.sin(rates * t) - y, torch.ones(2, 1, dtype=D), (0.0, 10.0))
    easy = solve(rows, norm=lambda x: rms(x[0]))
    alone = solve(pdf.ODEProblem(lambda t, y: torch.sin(0.1 * t) - y, torch.ones(1, dtype=D), (0.0, 10.0)))
    assert easy.stats.naccept == alone.stats.naccept < solve(rows).stats.naccept
    assert torch.allclose(easy.ys[:, 0], alone.ys, rtol=1e-10)


def test_its_tensors_may_change() -> None:
    weight = torch.ones(2, dtype=D)
    norm = lambda x: rms(weight * x)  # noqa: E731
    before = solve(pair(), norm=norm).stats.naccept
    weight[1] = 0.0
    after = solve(pair(), norm=norm).stats.naccept
    assert before == solve(pair()).stats.naccept > after


@pytest.mark.parametrize("sensealg", ["GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"])
def test_gradients(sensealg: str) -> None:
    rate = torch.tensor([1.0, 3.0], dtype=D, requires_grad=True)
    start = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * y, start, (0.0, 1.0))
    ys = pdf.solve(
        problem, "tsit5", saveat=[0.5, 1.0], rtol=1e-9, atol=1e-9, norm=lambda x: x.abs().amax(), sensealg=sensealg,
        backend="julia", dense=False,
    ).ys  # fmt: skip
    to_rate, to_start = torch.autograd.grad(ys.sum(), (rate, start))
    with torch.no_grad():
        half, whole = torch.exp(-0.5 * rate), torch.exp(-rate)
        assert torch.allclose(to_start, half + whole, rtol=1e-6)
        assert torch.allclose(to_rate, -start * (0.5 * half + whole), rtol=1e-6)


def test_events() -> None:
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 5.0))
    event = pdf.Event(lambda t, y: y[0] - 0.5)
    sol = pdf.solve(problem, "tsit5", rtol=1e-9, atol=1e-9, norm=rms, event=event, backend="julia")
    assert float(sol.events[0].ts[0]) == pytest.approx(0.6931471805599453, abs=1e-8)


def test_per_sample() -> None:
    """Each row is measured for itself."""
    rates = torch.tensor([[1.0], [5.0]], dtype=D)
    problem = pdf.ODEProblem(lambda t, y: -rates * y, torch.ones(2, 1, dtype=D), (0.0, 2.0), batched=True)
    steps = [
        solve_rows.stats.naccept
        for solve_rows in (
            pdf.solve(problem, "tsit5", saveat=[2.0], rtol=tol, atol=tol, backend="julia", per_sample=True, norm=norm)
            for tol, norm in ((1e-6, lambda x: 10 * x.square().mean(-1).sqrt()), (1e-7, None))
        )
    ]
    assert torch.equal(steps[0], steps[1])


def test_odeint() -> None:
    """torchdiffeq's option, with a tuple as the state: the norm of the easy part only."""
    t, y0 = torch.tensor([0.0, 10.0], dtype=D), (torch.ones(1, dtype=D), torch.ones(2, dtype=D))
    calls: list[int] = []

    def func(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.sin(0.1 * t) - y[0], torch.sin(20 * t) - y[1]

    def easy(y: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(1)
        return rms(y[0])

    found = pdf.odeint(func, y0, t, rtol=1e-8, atol=1e-8, options={"norm": easy}, backend="julia")
    wanted = pdf.odeint(func, y0, t, rtol=1e-8, atol=1e-8)
    assert calls
    assert torch.allclose(found[0], wanted[0], rtol=1e-7)
    # What the norm does not see is not accurate to the tolerance.
    assert float((found[1] - wanted[1]).abs().max()) > 1e-7


@pytest.mark.parametrize(
    ("norm", "error", "said"),
    [
        (lambda x: x, ShapeError, r"norm returned shape \(2,\)"),
        (lambda x: 1.0, ShapeError, "norm returned a float"),
        (lambda x: x.abs().max() if x[0] > 0 else rms(x), UntraceableError, "norm"),
    ],
)
def test_what_is_no_norm(norm: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        solve(pair(), norm=norm)


def test_where_it_does_not_exist() -> None:
    rate = torch.tensor(1.0, dtype=D, requires_grad=True)
    problem = pdf.ODEProblem(lambda t, y: -rate * y, torch.ones(1, dtype=D), (0.0, 10.0))
    for sensealg in ("ForwardDiffSensitivity", "ForwardSensitivity", "DiscreteAdjoint"):
        with pytest.raises(UnsupportedError, match=r"norm with sensealg=.*GaussAdjoint\(\)"):
            solve(problem, norm=rms, sensealg=sensealg)
    noisy = pdf.SDEProblem(lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(2, dtype=D), (0.0, 1.0))
    with pytest.raises(UnsupportedError, match="norm with a SDEProblem does not exist on backend='julia'"):
        pdf.solve(noisy, dt=0.1, backend="julia", norm=rms)

    def end(y0: Tensor) -> Tensor:
        return solve(pdf.ODEProblem(lambda t, y: -y, y0, (0.0, 10.0)), norm=rms).ys.sum()

    with pytest.raises(UnsupportedError, match=r"norm with torch\.func's transforms"):
        torch.func.grad(end)(torch.ones(2, dtype=D))
