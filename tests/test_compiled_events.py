"""Compiled solves with events and doses against the eager ones: where they are, what they change, and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import Event, PresetTimeCallback
from pydiffeqflux.backends import native
from pydiffeqflux.errors import MaxStepsError, NonFiniteError, UnsupportedError

D = torch.float64
TS = torch.linspace(0, 2, 9, dtype=D)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D, requires_grad=True)


class Case:
    """A damped oscillator, and everything of it that wants a gradient."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.y0, self.k, self.level, self.times = leaf(1.0, 0.3), leaf(9.0, 0.2), leaf(0.4), leaf(0.3, 1.1)
        self.t0, self.t1 = leaf(0.0), leaf(2.0)
        self.leaves = [self.y0, self.k, self.level, self.times, self.t0, self.t1]

    def func(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -self.k[0] * y[0] - self.k[1] * y[1] + torch.sin(t)])

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        return y[0] - self.level[0] * torch.cos(t)

    def affect(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0], -0.9 * y[1] + self.level[0] * t])

    def dose(self) -> PresetTimeCallback:
        return PresetTimeCallback(self.times, lambda t, y: y + self.level[0] * torch.stack([0 * t, 1 + t]))

    def options(self, name: str) -> dict[str, Any]:
        event = {
            "terminal": Event(self.condition, direction=1),
            "recorded": Event(self.condition, terminal=False),
            "affect": Event(self.condition, terminal=False, affect=self.affect, direction=-1),
        }
        if name in event:
            return {"event": event[name]}
        if name == "doses":
            return {"callbacks": self.dose()}
        assert name == "all"
        last = Event(lambda t, y: t - 1.7)
        return {"callbacks": self.dose(), "event": [event["affect"], event["recorded"], last]}


def solution(backend: str, name: str, method: str = "tsit5", **more: Any) -> tuple[Case, pdf.Solution]:
    case = Case()
    problem = pdf.ODEProblem(case.func, case.y0, (case.t0, case.t1))
    options = {"rtol": 1e-6, "atol": 1e-8, **case.options(name), **more}
    return case, pdf.solve(problem, method, backend=backend, **options)


def loss(sol: pdf.Solution) -> Tensor:
    total = (sol.ys**2).sum() + sol.ts.sum()
    for record in sol.events:
        total = total + (record.ts * torch.arange(1, len(record.ts) + 1)).sum() + (record.ys**3).sum()
    return total


NAMES = ("terminal", "recorded", "affect", "doses", "all")


@pytest.mark.parametrize("method", ["tsit5", "vern7", "dopri8"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("saving", ["saves", "steps", "end"])
def test_the_same_as_eager(name: str, method: str, saving: str) -> None:
    how = {"saves": {"saveat": TS}, "steps": {}, "end": {"save_everystep": False}}[saving]
    found = []
    for backend in ("compiled", "eager"):
        case, sol = solution(backend, name, method, **how)
        dense = sol(0.5) + sol(torch.tensor(0.61, dtype=D, requires_grad=True))
        grads = torch.autograd.grad(loss(sol) + dense.sum(), case.leaves, allow_unused=True, materialize_grads=True)
        found.append((sol, grads))
    (ours, grads), (theirs, expected) = found
    assert ours.stats.backend == "compiled" and ours.status is theirs.status
    assert (ours.stats.naccept, ours.stats.nreject) == (theirs.stats.naccept, theirs.stats.nreject)
    # Without a shared slope, each loop has its own time for the first evaluation of a step that an event prevents.
    assert abs(ours.stats.nf - theirs.stats.nf) <= (sum(len(x.ts) for x in ours.events) + 1 if method == "vern7" else 0)
    # The steps themselves are equal only as far as rounding leaves alone the small errors that determine their sizes.
    near = {"rtol": 1e-5, "atol": 1e-6} if saving == "steps" else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close((ours.ts, ours.ys), (theirs.ts, theirs.ys), **near)
    for mine, other in zip(ours.events, theirs.events, strict=True):
        torch.testing.assert_close((mine.ts, mine.ys), (other.ts, other.ys), rtol=1e-9, atol=1e-10)
        assert name == "all" or len(mine.ts) > 0
    exact = {"rtol": 1e-5, "atol": 1e-5} if saving == "steps" else {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(grads, expected, **exact)


def test_second_derivatives() -> None:
    found = []
    for backend in ("compiled", "eager"):
        case, sol = solution(backend, "terminal", saveat=TS, rtol=1e-9, atol=1e-11)
        (first,) = torch.autograd.grad(loss(sol), case.k, create_graph=True)
        found.append(torch.autograd.grad((first**2).sum(), [case.k, case.y0, case.level]))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


def test_bitwise_the_same_again() -> None:
    runs = []
    for _ in range(2):
        case, sol = solution("compiled", "all", saveat=TS)
        runs.append((sol.ys.detach(), *torch.autograd.grad(loss(sol), case.leaves[:3])))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("method", ["rodas5p", "rosenbrock23"])
@torch.no_grad()
def test_rosenbrock_methods_without_gradients(method: str) -> None:
    (_, ours), (_, theirs) = (solution(backend, "all", method, saveat=TS) for backend in ("compiled", "eager"))
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=1e-7, atol=1e-9)
    for mine, other in zip(ours.events, theirs.events, strict=True):
        torch.testing.assert_close(mine.ts, other.ts, rtol=1e-7, atol=1e-9)


def test_a_fixed_step_method_backwards_in_single_precision() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    found = []
    for backend in ("compiled", "eager"):
        y0 = torch.tensor([[0.3, -0.2, 0.5], [0.1, 0.9, -0.4]], requires_grad=True)
        problem = pdf.ODEProblem(lambda t, y: net(y), y0, (1.0, 0.0))
        events = Event(lambda t, y: y[:, 0] - 0.15, terminal=False), Event(lambda t, y: t - 0.33)
        sol = pdf.solve(problem, "rk4", dt=0.1, event=events, backend=backend)
        assert sol.status is pdf.Status.EVENT
        grads = torch.autograd.grad(sol.ys.sum() + sol.events[0].ts.sum(), [y0, *net.parameters()])
        found.append([sol.ys.detach(), sol.events[0].ts.detach(), *grads])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_state_that_is_a_structure() -> None:
    found = []
    for backend in ("compiled", "eager"):
        x, v = leaf(1.0), leaf(0.0)
        problem = pdf.ODEProblem(lambda t, s: {"x": s["v"], "v": -9.81 + 0 * s["x"]}, {"x": x, "v": v}, (0.0, 1.5))
        bounce = Event(
            lambda t, s: s["x"], terminal=False, direction=-1, affect=lambda t, s: {"x": 0 * s["x"], "v": -0.8 * s["v"]}
        )
        sol = pdf.solve(problem, event=bounce, rtol=1e-8, atol=1e-9, backend=backend)
        total = sol.ys["x"][-1].sum() + sol.events[0].ts.sum()
        found.append((sol.ys["x"].detach(), *torch.autograd.grad(total, [x, v])))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_throwing_and_max_steps() -> None:
    with pytest.raises(MaxStepsError):
        solution("compiled", "affect", max_steps=9)
    found = [solution(backend, "affect", max_steps=9, throw=False)[1] for backend in ("compiled", "eager")]
    torch.testing.assert_close(found[0].ys, found[1].ys, rtol=1e-5, atol=1e-6)
    assert found[0].status is found[1].status is pdf.Status.MAX_STEPS


def test_a_condition_that_is_nan() -> None:
    problem = pdf.ODEProblem(lambda t, y: -torch.ones_like(y), torch.tensor([0.5], dtype=D), (0.0, 1.0))
    with pytest.raises(NonFiniteError, match="condition is NaN"):
        pdf.solve(problem, event=Event(lambda t, y: torch.sqrt(y[0]) - 2 * t - 10), backend="compiled")


def test_what_is_not_covered_says_so() -> None:
    for more, said in (({"method": "rodas5p"}, "Rosenbrock"), ({"sensealg": "GaussAdjoint"}, "GaussAdjoint")):
        with pytest.raises(UnsupportedError, match=said):
            solution("compiled", "affect", **more)
    problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(2, dtype=D), (0.0, 1.0))
    looks = Event(lambda t, y: y[0] - 0.5 if float(y[0]) > 0.7 else y[0] - 0.6)
    with pytest.raises(UnsupportedError, match="condition is not compiled"):
        pdf.solve(problem, event=looks, backend="compiled")


def test_chosen_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WARM_UP", 0)
    case = Case()
    problem = pdf.ODEProblem(case.func, case.y0, (0.0, 2.0))
    sol = pdf.solve(problem, event=Event(case.condition), backend="torch")
    assert sol.stats.backend == "compiled", sol.stats.fallback
