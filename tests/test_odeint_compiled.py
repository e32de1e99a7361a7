"""torchdiffeq's interface in machine code: taken where it covers the call, and then with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.backends import native
from pydiffeqflux.backends.compiled import engine
from pydiffeqflux.errors import GradientError, MaxStepsError, NonFiniteError

D = torch.float64
T = torch.linspace(0.0, 1.5, 7, dtype=D)


class Spiral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(y**3)


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The compiled solves; functions are compiled at once."""
    seen: list[Any] = []
    run = engine.run

    def noted(*args: Any) -> Any:
        seen.append(args)
        return run(*args)

    monkeypatch.setattr(engine, "run", noted)
    monkeypatch.setattr(native, "WARM_UP", 0)
    return seen


def gradient(odeint: Callable[..., Any], **options: Any) -> tuple[Tensor, list[Tensor]]:
    func, y0 = Spiral(), torch.tensor([[2.0, 0.3]], dtype=D, requires_grad=True)
    ys = odeint(func, y0, options.pop("t", T), **{"rtol": 1e-8, "atol": 1e-8, **options})
    weights = torch.cos(torch.arange(ys.numel(), dtype=D)).view_as(ys)
    return ys.detach(), list(torch.autograd.grad((ys * weights).sum(), [y0, *func.parameters()]))


def both(odeint: Callable[..., Any], solves: list[Any], **options: Any) -> tuple[Any, Any]:
    native.WARM_UP = 10**9
    theirs = gradient(odeint, **options)
    assert not solves
    native.WARM_UP = 0
    ours = gradient(odeint, **options)
    assert len(solves) == 1
    return ours, theirs


@pytest.mark.parametrize("method", [None, "tsit5", "dopri8", "bosh3", "adaptive_heun"])
def test_states_and_gradients_to_rounding(method: str | None, solves: list[Any]) -> None:
    (ys, grads), (expected, wanted) = both(pdf.odeint, solves, method=method, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{"first_step": 0.01}, {"max_step": 0.1}, {"safety": 0.8, "ifactor": 5.0, "dfactor": 0.3}],
    ids=["first_step", "max_step", "control"],
)
def test_options(options: dict[str, float], solves: list[Any]) -> None:
    (ys, grads), (expected, wanted) = both(pdf.odeint, solves, options=options)
    torch.testing.assert_close(ys, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-10)


def test_backwards_in_time(solves: list[Any]) -> None:
    (ys, grads), (expected, wanted) = both(pdf.odeint, solves, t=T.flip(0))
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, wanted, rtol=1e-8, atol=1e-10)


def test_adjoint_to_its_tolerance(solves: list[Any]) -> None:
    (ys, grads), (expected, wanted) = both(pdf.odeint_adjoint, solves)
    torch.testing.assert_close(ys, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(grads, wanted, rtol=1e-5, atol=1e-6)


def test_the_adjoint_gradient_can_be_recorded_but_not_differentiated(solves: list[Any]) -> None:
    func, y0 = Spiral(), torch.tensor([[2.0, 0.3]], dtype=D, requires_grad=True)
    ys = pdf.odeint_adjoint(func, y0, T)
    (g,) = torch.autograd.grad(ys.sum(), y0, create_graph=True)
    assert len(solves) == 1
    with pytest.raises(GradientError, match="no second derivative"):
        g.sum().backward()


def test_second_derivatives(solves: list[Any]) -> None:
    rate = torch.tensor(0.7, dtype=D, requires_grad=True)
    y1 = pdf.odeint(lambda t, y: -rate * y, torch.ones(1, dtype=D), torch.tensor([0.0, 1.0], dtype=D), rtol=1e-10)[-1]
    assert len(solves) == 1
    (first,) = torch.autograd.grad(y1.sum(), rate, create_graph=True)
    (second,) = torch.autograd.grad(first, rate)
    torch.testing.assert_close(second, torch.exp(-rate).detach(), rtol=1e-7, atol=1e-9)


class Counting(Spiral):
    def __init__(self) -> None:
        super().__init__()
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return super().forward(t, y)


CALLS: dict[str, Callable[[], Any]] = {
    "a counter": lambda: pdf.odeint(Counting(), torch.ones(1, 2, dtype=D), T),
    "a tuple": lambda: pdf.odeint(lambda t, y: (-y[0],), (torch.ones(2, dtype=D),), T),
    "a norm": lambda: pdf.odeint(lambda t, y: -y, torch.ones(2, dtype=D), T, options={"norm": torch.linalg.norm}),
    "a jump": lambda: pdf.odeint(lambda t, y: -y, torch.ones(2, dtype=D), T, options={"jump_t": [0.5]}),
    "times": lambda: pdf.odeint(lambda t, y: -y, torch.ones(2, dtype=D), T.clone().requires_grad_()),
    "fixed steps": lambda: pdf.odeint(lambda t, y: -y, torch.ones(2, dtype=D), T, method="rk4"),
    "one time": lambda: pdf.odeint(lambda t, y: -y, torch.ones(2, dtype=D), T[:1]),
}


@pytest.mark.parametrize("kind", CALLS)
def test_what_stays_with_eager_torch(kind: str, solves: list[Any]) -> None:
    CALLS[kind]()
    assert not solves


def test_a_counter_counts(solves: list[Any]) -> None:
    func = Counting()
    counts = []
    for _ in range(3):
        func.nfe = 0
        pdf.odeint(func, torch.ones(1, 2, dtype=D), T)
        counts.append(func.nfe)
    assert counts[-1] > 10 and counts[-1] == counts[-2]  # the first ones count a trace, too


def test_failures_are_the_interfaces_own(solves: list[Any]) -> None:
    with pytest.raises(MaxStepsError, match="max_num_steps exceeded"):
        pdf.odeint(lambda t, y: -y, torch.ones(1, dtype=D), T, options={"max_num_steps": 1})
    with pytest.raises(NonFiniteError):
        pdf.odeint(lambda t, y: y / (y - y), torch.ones(1, dtype=D), T)
