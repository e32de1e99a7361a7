"""Compiled Rosenbrock methods against the eager ones: steps, states, and the exact gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from pydiffeqflux import ODEProblem, solve
from pydiffeqflux.errors import UnsupportedError

D = torch.float64
METHODS = ("rosenbrock23", "rodas5p")


def rober(k: Tensor) -> Any:
    def func(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = k[0] * y[0], k[1] * y[1] * y[1], k[2] * y[1] * y[2]
        return torch.stack([-a + c, a - b - c, b])

    return func


def forced(k: Tensor) -> Any:
    """Stiff, non-linear, and dependent on time."""


    def func(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-50.0 * k[0] * (y[0] - torch.cos(t)), k[1] * y[0] * y[1] - y[1] ** 2 * torch.sin(t)])

    return func


PROBLEMS: dict[str, Any] = {
    "rober": (rober, [0.04, 3e7, 1e4], [1.0, 0.0, 0.0], (0.0, 1e3), [1.0, 40.0, 1e3]),
    "forced": (forced, [1.0, 0.3], [0.5, 0.7], (0.1, 2.0), [0.1, 0.8, 2.0]),
    "backwards": (forced, [-1.0, 0.3], [0.5, 0.7], (2.0, 0.5), [1.0, 0.5]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_as_eager(method: str, name: str) -> None:
    make, constants, start, span, saves = PROBLEMS[name]
    found = []
    for backend in ("compiled", "eager"):
        k = torch.tensor(constants, dtype=D, requires_grad=True)
        y0 = torch.tensor(start, dtype=D, requires_grad=True)
        sol = solve(ODEProblem(make(k), y0, span), method, saveat=saves, rtol=1e-6, atol=1e-9, backend=backend)
        middle = 0.5 * (span[0] + span[1])
        loss = (sol.ys[:, 0] + 1e3 * sol.ys[:, 1]).sum() + (sol(middle)[0] if method == "rodas5p" else 0.0)
        found.append((sol, torch.autograd.grad(loss, [y0, k])))
    (ours, grads), (theirs, expected) = found
    assert ours.stats.backend == "compiled"
    assert (ours.stats.naccept, ours.stats.nreject) == (theirs.stats.naccept, theirs.stats.nreject)
    assert ours.stats.njac == theirs.stats.njac
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-7, atol=1e-11)
    between = [span[0] + part * (span[1] - span[0]) for part in (0.01, 0.3, 0.9)]
    torch.testing.assert_close(ours(between), theirs(between), rtol=1e-6, atol=1e-9)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_networks(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    y0 = torch.randn(2, 3, dtype=D, requires_grad=True)
    found = []
    for backend in ("compiled", "eager"):
        problem = ODEProblem(lambda t, y: 3 * net(y), y0, (0.0, 1.0))
        ys = solve(problem, method, rtol=1e-5, saveat=[0.3, 1.0], backend=backend).ys
        found.append([ys, *torch.autograd.grad(ys.square().sum(), [y0, *net.parameters()])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck(method: str) -> None:
    k = torch.tensor([1.0, 0.3], dtype=D, requires_grad=True)
    y0 = torch.tensor([0.5, 0.7], dtype=D, requires_grad=True)

    def states(y0: Tensor, k: Tensor) -> Tensor:
        # At dt_min every step is accepted: the computed solution is a smooth function of its arguments.
        options = {"dt": 0.1, "dt_min": 0.0999, "dt_max": 0.1, "backend": "compiled"}
        return solve(ODEProblem(forced(k), y0, (0.0, 1.0)), method, saveat=[0.33, 1.0], **options).ys

    assert gradcheck(states, (y0, k), atol=1e-6)


def test_single_precision() -> None:
    k, y0 = torch.tensor([1.0, 0.3]), torch.tensor([0.5, 0.7])
    ours, theirs = (
        solve(ODEProblem(forced(k), y0, (0.0, 2.0)), "rodas5p", rtol=1e-3, saveat=[2.0], backend=b).ys
        for b in ("compiled", "eager")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "times", "why"),
    [(101, False, "a Jacobian of 101 rows"), (3, True, "gradients of times through a Rosenbrock method")],
)
def test_what_is_not_covered(size: int, times: bool, why: str) -> None:
    t1 = torch.tensor(1.0, requires_grad=times)
    with pytest.raises(UnsupportedError, match=why):
        solve(ODEProblem(lambda t, y: -y, torch.ones(size), (0.0, t1)), "rodas5p", backend="compiled")


class Shifted(nn.Module):
    """A layer whose Jacobian knows nothing of its bias, nor of the second state."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-3.0, 0.7], [0.2, -40.0]], dtype=D))
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2], dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.weight.T * torch.stack([torch.ones_like(y[0]), 1 + y[0] ** 2]) + self.bias


def normed() -> nn.Module:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3), nn.LayerNorm(3))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y)

    torch.manual_seed(0)
    return Normed().double()


class Linear(nn.Module):
    """The Jacobian is constant: it depends on no state at all."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[-2.0, 1.0], [0.5, -30.0]], dtype=D))
        self.b = nn.Parameter(torch.tensor([1.0, 2.0], dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.a @ y + self.b * torch.cos(t)


class Constant(nn.Module):
    """There is no Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor([1.0, 2.0], dtype=D))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.b * 1.5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [Shifted, normed, Linear, Constant])
def test_a_jacobian_that_does_not_depend_on_everything(method: str, make: Any) -> None:
    net = make()
    n = 3 if make is normed else 2
    found = []
    for backend in ("compiled", "eager"):
        y0 = torch.linspace(0.5, 1.0, n, dtype=D).requires_grad_()
        problem = ODEProblem(net, y0, (0.0, 1.0))
        ys = solve(problem, method, saveat=[0.3, 1.0], rtol=1e-6, atol=1e-8, dense=False, backend=backend).ys
        found.append(torch.autograd.grad((ys * ys).sum(), [y0, *net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)
