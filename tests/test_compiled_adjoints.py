"""Compiled continuous adjoints against the eager ones: the same backward solves to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import BacksolveAdjoint, GaussAdjoint, InterpolatingAdjoint, ODEProblem, solve
from pydiffeqflux.errors import GradientError, SolveError, UnsupportedError

D = torch.float64
ADJOINTS = [
    InterpolatingAdjoint(), InterpolatingAdjoint(method="bosh3", rtol=1e-5, atol=1e-7), GaussAdjoint(),
    GaussAdjoint(method="dopri8"), BacksolveAdjoint(), BacksolveAdjoint(checkpointing=False, seminorm=True),
]  # fmt: skip


def pendulum(k: Tensor) -> Any:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -k[0] * torch.sin(y[0]) - k[1] * y[1] + torch.cos(2.0 * t)])

    return func


def gradients(backend: str, sense: Any, method: str, mode: str, **options: Any) -> tuple[Any, list[Any]]:
    k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=D, requires_grad=True)
    t0, t1 = torch.tensor(0.1, dtype=D, requires_grad=True), torch.tensor(2.3, dtype=D, requires_grad=True)
    times = torch.tensor([0.1, 0.4, 1.7, 2.3], dtype=D, requires_grad=True)
    given = {"saves": {"saveat": times}, "steps": {}, "end": {"save_everystep": False}}[mode]
    options = {"rtol": 1e-7, "atol": 1e-9, **given, **options}
    sol = solve(ODEProblem(pendulum(k), y0, (t0, t1)), method, sensealg=sense, backend=backend, **options)
    weights = torch.cos(torch.arange(sol.ys.numel(), dtype=D)).view_as(sol.ys)
    inputs = [y0, k, t0] + ([times] if mode == "saves" else [t1] if mode == "end" else [])
    return sol, list(torch.autograd.grad((sol.ys * weights).sum(), inputs, allow_unused=True))


@pytest.mark.parametrize("mode", ["saves", "end"])
@pytest.mark.parametrize("sense", ADJOINTS, ids=str)
@pytest.mark.parametrize("method", ["tsit5", "vern7"])
def test_the_same_as_eager(method: str, sense: Any, mode: str) -> None:
    (ours, grads), (theirs, expected) = (gradients(b, sense, method, mode) for b in ("compiled", "eager"))
    assert ours.stats.backend == "compiled" and ours.stats.sensealg == theirs.stats.sensealg
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-9, atol=1e-11)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("sense", ADJOINTS[::2], ids=str)
def test_every_step_and_fixed_steps(sense: Any) -> None:
    cases: Any = (("tsit5", "steps", {"rtol": 1e-4}), ("rk4", "saves", {"dt": 0.05}), ("rk4", "end", {"dt": 0.05}))
    for method, mode, options in cases:
        found = [gradients(b, sense, method, mode, **options)[1] for b in ("compiled", "eager")]
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sense", ADJOINTS[::2], ids=str)
def test_networks_in_single_precision(sense: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    found = []
    for backend in ("compiled", "eager"):
        node = pdf.NeuralODE(net, (0.0, 1.0), saveat=[0.5, 1.0], rtol=1e-4, atol=1e-4, sensealg=sense, backend=backend)
        found.append(torch.autograd.grad(node(torch.ones(3, 2)).square().sum(), list(net.parameters())))
    for got, want in zip(*found, strict=True):
        assert float((got - want).norm() / want.norm()) < 1e-3


def test_there_is_no_second_derivative() -> None:
    k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
    problem = ODEProblem(pendulum(k), torch.ones(2, dtype=D), (0.0, 1.0))
    sol = solve(problem, sensealg=GaussAdjoint(), backend="compiled")
    (g,) = torch.autograd.grad(sol.ys.sum(), k, create_graph=True)
    with pytest.raises(GradientError, match=r"GaussAdjoint has no second derivative"):
        g.sum().backward()


def test_a_backward_solve_that_fails_says_so() -> None:
    k = torch.tensor([1.3, 0.2], dtype=D, requires_grad=True)
    sense = InterpolatingAdjoint(rtol=1e-13, atol=1e-15)
    problem = ODEProblem(pendulum(k), torch.ones(2, dtype=D), (0.0, 5.0))
    sol = solve(problem, sensealg=sense, rtol=1e-2, max_steps=30, backend="compiled")
    with pytest.raises(SolveError, match="in the backward solve"):
        sol.ys[-1].sum().backward()


@pytest.mark.parametrize(
    ("sense", "options", "why"),
    [
        (InterpolatingAdjoint(checkpointing=True), {}, r"InterpolatingAdjoint\(checkpointing=True\)"),
        (GaussAdjoint(method="rodas5p"), {}, "GaussAdjoint with an implicit method"),
        (GaussAdjoint(), {"throw": False}, "with throw=False"),
    ],
)
def test_what_is_not_covered(sense: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        solve(ODEProblem(lambda t, y: -y, torch.ones(2), (0.0, 1.0)), sensealg=sense, backend="compiled", **options)
