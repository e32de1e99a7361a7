"""Compiled per-sample mode against the eager one: the same steps in every row, states and gradients to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pydiffeqflux import ODEProblem, solve
from pydiffeqflux.errors import SolveError, UnsupportedError

D = torch.float64
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def van_der_pol(mu: Tensor) -> Any:
    def func(t: Tensor, y: Tensor) -> Tensor:
        x, v = y[:, :1], y[:, 1:]
        return torch.cat([v, mu * (1 - x**2) * v - x + torch.cos(t)], 1)

    return func


def solved(backend: str, method: str = "tsit5", *, saves: bool = True, **options: Any) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    mu = torch.tensor(2.0, dtype=D, requires_grad=True)
    y0 = torch.randn(5, 2, dtype=D, requires_grad=True)
    t0, t1 = torch.tensor(0.2, dtype=D, requires_grad=True), torch.tensor(3.0, dtype=D, requires_grad=True)
    times = torch.tensor([0.2, 0.5, 2.0, 3.0], dtype=D, requires_grad=True)
    given = {"saveat": times} if saves else {"save_everystep": False}
    problem = ODEProblem(van_der_pol(mu), y0, (t0, t1), batched=True)
    options = {"rtol": 1e-7, "atol": 1e-9, **given, **options}
    sol = solve(problem, method, per_sample=True, dense=False, backend=backend, **options)
    weights = torch.cos(torch.arange(sol.ys.numel(), dtype=D)).view_as(sol.ys)
    inputs = [y0, mu, t0, t1] + ([times] if saves else [])
    return sol, list(torch.autograd.grad((sol.ys * weights).sum(), inputs, allow_unused=True))


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("method", ["tsit5", "dopri8", "bosh3"])
def test_the_same_as_eager(method: str, saves: bool) -> None:
    (ours, grads), (theirs, expected) = (solved(b, method, saves=saves) for b in ("compiled", "eager"))
    assert ours.stats.backend == "compiled"
    assert torch.equal(ours.stats.naccept, theirs.stats.naccept)
    assert torch.equal(ours.stats.nreject, theirs.stats.nreject)
    assert ours.statuses == theirs.statuses
    torch.testing.assert_close(ours.ts, theirs.ts, **CLOSE)
    torch.testing.assert_close(ours.ys, theirs.ys, **CLOSE)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("threads", [1, 2])
def test_without_a_gradient(threads: int) -> None:
    torch.manual_seed(0)
    y0 = torch.randn(100, 2, dtype=D)
    problem = ODEProblem(van_der_pol(torch.tensor(2.0, dtype=D)), y0, (0.0, 2.0), batched=True)
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            ours, theirs = (
                solve(problem, saveat=0.25, rtol=1e-6, per_sample=True, dense=False, backend=b)
                for b in ("compiled", "eager")
            )
    finally:
        torch.set_num_threads(1)
    assert torch.equal(ours.stats.naccept, theirs.stats.naccept)
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-7, atol=1e-9)


def test_rows_fail_for_themselves() -> None:
    found = []
    for backend in ("compiled", "eager"):
        y0 = torch.tensor([[0.5], [2.0], [-1.0]], dtype=D)
        problem = ODEProblem(lambda t, y: y * y, y0, (0.0, 1.0), batched=True)
        options = {"saveat": [0.25, 1.0], "per_sample": True, "dense": False, "backend": backend, "max_steps": 200}
        found.append(solve(problem, throw=False, **options))
        with pytest.raises(SolveError, match=r"1 of 3 rows failed \(1\); row 1"):
            solve(problem, **options)
    ours, theirs = found
    assert ours.status is theirs.status and ours.statuses == theirs.statuses
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-5, atol=1e-8, equal_nan=True)


def test_second_derivatives_are_the_eager_engines() -> None:
    results = []
    for backend in ("compiled", "eager"):
        mu = torch.tensor(2.0, dtype=D, requires_grad=True)
        y0 = torch.tensor([[1.0, 0.5], [0.3, -1.0]], dtype=D)
        problem = ODEProblem(van_der_pol(mu), y0, (0.0, 1.0), batched=True)
        ys = solve(problem, saveat=[1.0], rtol=1e-7, per_sample=True, dense=False, backend=backend).ys
        (first,) = torch.autograd.grad(ys.square().sum(), mu, create_graph=True)
        results.append(torch.stack([first, torch.autograd.grad(first, mu)[0]]))
    torch.testing.assert_close(*results, **CLOSE)


def test_functions_that_tell_rows_apart_are_refused() -> None:
    rates = torch.tensor([[1.0], [2.0], [3.0]])
    problem = ODEProblem(lambda t, y: -rates[: len(y)] * y, torch.ones(3, 2), (0.0, 1.0), batched=True)
    with pytest.raises(UnsupportedError, match="a single row is not that of the batch's rows"):
        solve(problem, saveat=[1.0], per_sample=True, dense=False, backend="compiled")


@pytest.mark.parametrize(
    ("options", "why"),
    [({}, "with saveat, or save_everystep=False"), ({"saveat": [1.0]}, "with dense=False only")],
)
def test_what_is_not_covered(options: dict[str, Any], why: str) -> None:
    net = nn.Linear(2, 2)
    problem = ODEProblem(lambda t, y: net(y), torch.ones(3, 2), (0.0, 1.0), batched=True)
    with pytest.raises(UnsupportedError, match=why):
        solve(problem, per_sample=True, backend="compiled", **options)
