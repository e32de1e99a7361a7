"""Events and doses in joint mode: found where they are, recorded, and differentiated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pydiffeqflux as pdf
from pydiffeqflux.errors import InvalidArgumentError, InvalidTimesError, ShapeError

D = torch.float64
G = 9.81
TIGHT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=D, requires_grad=True)


def ball(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], torch.full_like(y[1], -G)])


def dropped(height: Tensor | float, speed: Tensor | float = 0.0) -> Tensor:
    return torch.stack([torch.as_tensor(height, dtype=D), torch.as_tensor(speed, dtype=D)])


def solve(func: Any, y0: Any, span: Any, method: str | None = None, **options: Any) -> pdf.Solution:
    return pdf.solve(pdf.ODEProblem(func, y0, span), method, **{**TIGHT, **options})


# -- terminal events ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "bosh3", "vern7", "dopri8", "rodas5p", "kencarp4", "qndf"])
def test_a_terminal_event_ends_the_solve_where_it_happens(method: str) -> None:
    event = pdf.Event(lambda t, y: y[0] - 0.5)
    sol = solve(lambda t, y: -y, torch.ones(2, dtype=D), (0.0, 9.0), method, event=event, rtol=1e-8, atol=1e-10)
    assert sol.status is pdf.Status.EVENT
    assert sol.success
    torch.testing.assert_close(sol.events[0].ts, numbers(math.log(2)), rtol=1e-6, atol=1e-7)
    assert torch.equal(sol.ts[-1:], sol.events[0].ts)
    torch.testing.assert_close(sol.ys[-1], numbers(0.5, 0.5), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sol.events[0].ys[0], sol.ys[-1])


def test_a_fixed_step_method_lands_on_events_too() -> None:
    sol = solve(lambda t, y: torch.ones_like(y), torch.zeros(1, dtype=D), (0.0, 9.0), "euler", dt=1.0,
                event=lambda t, y: y[0] - math.pi)  # fmt: skip
    torch.testing.assert_close(sol.events[0].ts, numbers(math.pi))


def test_a_plain_condition_is_terminal_and_saves_before_it_are_kept() -> None:
    sol = solve(ball, dropped(20.0), (0.0, 9.0), event=lambda t, y: y[0], saveat=numbers(0.0, 1.0, 2.0, 3.0))
    end = math.sqrt(40 / G)
    torch.testing.assert_close(sol.ts, numbers(0.0, 1.0, 2.0, end))
    torch.testing.assert_close(sol.ys[:3, 0], 20 - G / 2 * sol.ts[:3] ** 2)
    torch.testing.assert_close(sol.ys[-1], numbers(0.0, -G * end))
    only = solve(ball, dropped(20.0), (0.0, 9.0), event=lambda t, y: y[0], save_everystep=False)
    torch.testing.assert_close(only.ts, numbers(end))


def test_without_a_crossing_the_solve_reaches_its_end() -> None:
    sol = solve(ball, dropped(20.0), (0.0, 1.0), event=lambda t, y: y[0])
    assert sol.status is pdf.Status.SUCCESS
    assert sol.events[0].ts.shape == (0,)
    assert sol.events[0].ys.shape == (0, 2)


@pytest.mark.parametrize(("direction", "times"), [(0, (0.25, 0.75, 1.25)), (1, (0.75,)), (-1, (0.25, 1.25))])
def test_directions(direction: int, times: tuple[float, ...]) -> None:
    event = pdf.Event(lambda t, y: torch.cos(2 * math.pi * t), terminal=False, direction=direction)
    sol = solve(lambda t, y: torch.cos(t) * y, torch.ones(1, dtype=D), (0.0, 1.5), event=event)
    torch.testing.assert_close(sol.events[0].ts, numbers(*times))
    torch.testing.assert_close(sol.events[0].ys[:, 0], sol.events[0].ts.sin().exp(), rtol=1e-7, atol=1e-7)


def test_directions_count_along_the_solve_in_reversed_time() -> None:
    """Backwards from 0 the cosine falls through zero first; forwards in time it would rise there."""
    event = pdf.Event(lambda t, y: torch.cos(2 * math.pi * t), direction=-1)
    sol = solve(lambda t, y: torch.cos(t) * y, torch.ones(1, dtype=D), (0.0, -1.5), event=event)
    torch.testing.assert_close(sol.events[0].ts, numbers(-0.25))


def test_a_recorded_event_changes_nothing() -> None:
    event = pdf.Event(lambda t, y: y[0] - 0.7, terminal=False)
    plain = solve(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 2.0))
    watched = solve(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 2.0), event=event)
    assert torch.equal(plain.ys, watched.ys)
    assert torch.equal(plain.ts, watched.ts)
    torch.testing.assert_close(watched.events[0].ts, numbers(-math.log(0.7)), rtol=1e-8, atol=1e-9)


def test_several_crossings_inside_one_step() -> None:
    event = pdf.Event(lambda t, y: torch.cos(math.pi * t), terminal=False, interp_points=30)
    sol = solve(lambda t, y: torch.ones_like(y), torch.zeros(1, dtype=D), (0.0, 3.0), "euler", dt=3.0, event=event)
    torch.testing.assert_close(sol.events[0].ts, numbers(0.5, 1.5, 2.5))


def test_what_lies_behind_a_terminal_event_does_not_happen() -> None:
    record = [pdf.Event(lambda t, y, at=at: y[0] - at, terminal=False) for at in (0.3, 0.8)]
    stop = pdf.Event(lambda t, y: y[0] - 0.5)
    sol = solve(lambda t, y: torch.ones_like(y), torch.zeros(1, dtype=D), (0.0, 1.0), dt=1.0, event=[*record, stop])
    assert [len(e.ts) for e in sol.events] == [1, 0, 1]
    assert float(sol.ts[-1]) == pytest.approx(0.5)


def test_an_event_at_the_very_start_is_not_one() -> None:
    """Thrown from the ground, the condition is zero at once; only the landing counts."""
    sol = solve(ball, dropped(0.0, 3.0), (0.0, 9.0), event=lambda t, y: y[0])
    torch.testing.assert_close(sol.events[0].ts, numbers(6 / G))


def test_an_event_at_the_very_end_is_one() -> None:
    sol = solve(lambda t, y: torch.ones_like(y), torch.zeros(1, dtype=D), (0.0, 1.0), "euler", dt=0.25,
                event=lambda t, y: y[0] - 1.0)  # fmt: skip
    assert sol.status is pdf.Status.EVENT
    assert sol.events[0].ts.tolist() == [1.0]


def test_reversed_time() -> None:
    sol = solve(ball, dropped(5.0), (0.0, -3.0), event=lambda t, y: y[0], saveat=[-0.5, -2.0])
    end = -math.sqrt(10 / G)
    torch.testing.assert_close(sol.events[0].ts, numbers(end))
    torch.testing.assert_close(sol.ys, torch.stack([dropped(5 - G / 8, G / 2), dropped(0.0, -G * end)]))


def test_structured_states() -> None:
    def f(t: Tensor, y: Any) -> Any:
        return (-y[0], {"b": torch.ones_like(y[1]["b"])})

    y0 = (torch.ones(2, 2, dtype=D), {"b": torch.zeros(3, dtype=D)})
    double = pdf.Event(
        lambda t, y: y[1]["b"][0] - 0.5, terminal=False, affect=lambda t, y: (2 * y[0], {"b": y[1]["b"] * t})
    )
    stop = pdf.Event(lambda t, y: y[1]["b"][2] - 1.0)
    sol = solve(f, y0, (0.0, 9.0), event=[double, stop])
    # b is 0.5 at t = 0.5, falls to 0.25, is 0.5 again at 0.75 (then 0.375), at 0.875, ...
    assert float(sol.events[0].ts[0]) == pytest.approx(0.5)
    assert float(sol.events[0].ts[1]) == pytest.approx(0.75)
    first, inner = sol.events[0].ys
    assert first.shape[1:] == (2, 2)
    torch.testing.assert_close(inner["b"][0], numbers(0.5, 0.5, 0.5))
    torch.testing.assert_close(first[0], torch.full((2, 2), math.exp(-0.5), dtype=D), rtol=1e-7, atol=1e-8)


def test_any_component_of_a_vector_condition_counts() -> None:
    levels = numbers(0.9, 0.3, 0.6)
    event = pdf.Event(lambda t, y: y - levels, terminal=False)
    rate = scalar(1.0)
    sol = solve(lambda t, y: -rate * y, torch.ones(3, dtype=D), (0.0, 5.0), event=event)
    exact = -torch.tensor([0.9, 0.6, 0.3], dtype=D).log()
    torch.testing.assert_close(sol.events[0].ts, exact, rtol=1e-7, atol=1e-8)
    grads = [torch.autograd.grad(t, rate, retain_graph=True)[0] for t in sol.events[0].ts]
    torch.testing.assert_close(torch.stack(grads), -exact, rtol=1e-6, atol=1e-7)


def test_float32() -> None:
    y0 = torch.tensor([5.0, 0.0])
    sol = solve(ball, y0, (0.0, 9.0), event=lambda t, y: y[0], rtol=1e-6, atol=1e-6)
    assert sol.ys.dtype == torch.float32
    assert float(sol.events[0].ts[0]) == pytest.approx(math.sqrt(10 / G), rel=1e-5)


def test_every_crossing_of_an_oscillator() -> None:
    event = pdf.Event(lambda t, y: y[0], terminal=False)
    sol = solve(lambda t, y: torch.stack([y[1], -y[0]]), dropped(0.0, 1.0), (0.0, 20.0), event=event)
    torch.testing.assert_close(sol.events[0].ts, math.pi * torch.arange(1, 7, dtype=D), rtol=1e-6, atol=1e-6)


# -- bouncing -----------------------------------------------------------------------------------


def bounce_times(height: Tensor, restitution: Tensor, count: int) -> Tensor:
    first = (2 * height / G).sqrt()
    return torch.stack([first, *(2 * first * restitution**k for k in range(1, count))]).cumsum(0)


def bounced(height: Tensor, restitution: Tensor, end: float, count: int) -> Tensor:
    """Height and speed after ``count`` bounces."""
    since = end - bounce_times(height, restitution, count)[-1]
    up = (2 * G * height).sqrt() * restitution**count
    return torch.stack([up * since - G / 2 * since**2, up - G * since])


def bouncing(height: Tensor, restitution: Tensor, end: float, **options: Any) -> pdf.Solution:
    bounce = pdf.Event(
        lambda t, y: y[0],
        terminal=False,
        direction=-1,
        affect=lambda t, y: torch.stack([0 * y[0], -restitution * y[1]]),
    )
    return solve(ball, dropped(height), (0.0, end), event=bounce, **options)


@pytest.mark.parametrize("method", ["tsit5", "vern9", "rodas5p"])
def test_a_bouncing_ball(method: str) -> None:
    height, restitution, end = numbers(1.0)[0], numbers(0.85)[0], 3.0
    sol = bouncing(height, restitution, end, method=method, saveat=numbers(0.1, 1.0, 2.5, end))
    times = bounce_times(height, restitution, 12)
    times = times[times < end]
    assert sol.status is pdf.Status.SUCCESS
    torch.testing.assert_close(sol.events[0].ts, times, rtol=1e-8, atol=1e-8)
    speeds = -(2 * G * height).sqrt() * restitution ** torch.arange(len(times), dtype=D)
    torch.testing.assert_close(sol.events[0].ys[:, 1], speeds, rtol=1e-8, atol=1e-8)
    for index, when in enumerate((1.0, 2.5, end)):
        count = int((times < when).sum())
        exact = bounced(height, restitution, when, count)
        torch.testing.assert_close(sol.ys[index + 1], exact, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(sol(when), exact, rtol=1e-7, atol=1e-7)


def test_every_step_is_kept_across_bounces() -> None:
    sol = bouncing(numbers(1.0)[0], numbers(0.85)[0], 2.0)
    assert bool((sol.ts.diff() >= 0).all())
    energy = G * sol.ys[:, 0] + sol.ys[:, 1] ** 2 / 2
    flights = torch.bucketize(sol.ts, sol.events[0].ts, right=True)
    expected = G * 0.85 ** (2 * flights.double())
    torch.testing.assert_close(energy, expected, rtol=1e-7, atol=1e-7)


def test_gradient_through_bounces() -> None:
    height, restitution = scalar(1.0), scalar(0.85)
    sol = bouncing(height, restitution, 2.0, save_everystep=False)
    count = len(sol.events[0].ts)
    assert count >= 3
    exact = bounced(height, restitution, 2.0, count)
    for component in range(2):
        mine = torch.autograd.grad(sol.ys[-1, component], [height, restitution], retain_graph=True)
        reference = torch.autograd.grad(exact[component], [height, restitution], retain_graph=True)
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)


def test_bounces_that_pile_up_end_at_max_steps() -> None:
    """Zeno's ball comes to rest after finitely long, with infinitely many bounces."""
    sol = bouncing(numbers(0.1)[0], numbers(0.3)[0], 5.0, max_steps=300, throw=False)
    assert not sol.success or float(sol.ys[-1].abs().max()) < 1e-3
    rest = math.sqrt(0.2 / G) * (1 + 2 * 0.3 / 0.7)
    assert len(sol.events[0].ts) > 10
    assert float(sol.events[0].ts[10]) < rest + 1e-6


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "vern7", "rodas5p", "kencarp4"])
def test_gradients_of_event_times(method: str) -> None:
    height, gravity, level = scalar(5.0), scalar(G), scalar(0.5)

    def time(height: Tensor, gravity: Tensor, level: Tensor) -> Any:
        fall = lambda t, y: torch.stack([y[1], -gravity * torch.ones_like(y[1]) - 0.1 * y[1]])  # noqa: E731
        y0 = torch.stack([height, torch.zeros_like(height)])
        sol = solve(fall, y0, (0.0, 9.0), method, event=lambda t, y: y[0] - level, rtol=1e-8, atol=1e-9)
        return sol.events[0].ts

    assert torch.autograd.gradcheck(time, (height, gravity, level), atol=1e-5, rtol=1e-4)


def test_gradient_of_the_state_at_an_event() -> None:
    """On the event's surface the condition's value is constant, so its gradient vanishes."""
    height = scalar(5.0)
    sol = solve(ball, dropped(height), (0.0, 9.0), event=lambda t, y: y[0])
    position, speed = sol.events[0].ys[0]
    (at_surface,) = torch.autograd.grad(position, height, retain_graph=True)
    assert abs(float(at_surface)) < 1e-9
    (grad,) = torch.autograd.grad(speed, height, retain_graph=True)
    assert float(grad) == pytest.approx(-math.sqrt(G / 10), rel=1e-7)
    (last,) = torch.autograd.grad(sol.ys[-1, 1], height)
    assert float(last) == pytest.approx(-math.sqrt(G / 10), rel=1e-7)


def test_event_times_have_second_and_third_derivatives() -> None:
    height = scalar(5.0)
    (time,) = solve(ball, dropped(height), (0.0, 9.0), event=lambda t, y: y[0]).events[0].ts
    (first,) = torch.autograd.grad(time, height, create_graph=True)
    (second,) = torch.autograd.grad(first, height, create_graph=True)
    (third,) = torch.autograd.grad(second, height)
    # t = (2 h / g)^(1/2)
    assert float(first.detach()) == pytest.approx(0.5 * (2 / G) ** 0.5 * 5**-0.5, rel=1e-7)
    assert float(second.detach()) == pytest.approx(-0.25 * (2 / G) ** 0.5 * 5**-1.5, rel=1e-6)
    assert float(third) == pytest.approx(0.375 * (2 / G) ** 0.5 * 5**-2.5, rel=1e-5)


def test_second_derivative_through_a_nonlinear_flow() -> None:
    def time(rate: Tensor, start: Tensor) -> Any:
        event = pdf.Event(lambda t, y: y[0].square() - t)
        sol = solve(lambda t, y: -rate * y.tanh(), start.reshape(1), (0.0, 9.0), event=event, rtol=1e-8)
        return sol.events[0].ts

    arguments = (scalar(0.7), scalar(1.3))
    assert torch.autograd.gradcheck(time, arguments, atol=1e-5, rtol=1e-4)
    assert torch.autograd.gradgradcheck(time, arguments, atol=1e-5, rtol=1e-4)


def test_gradients_of_the_span_reach_events() -> None:
    t0, t1 = scalar(0.3), scalar(2.0)

    def found(t0: Tensor, t1: Tensor) -> Any:
        reset = pdf.Event(lambda t, y: y[0] - 0.5, terminal=False, affect=lambda t, y: 2 * y)
        sol = solve(lambda t, y: -t * y, torch.ones(1, dtype=D), (t0, t1), event=reset, save_everystep=False)
        return sol.events[0].ts, sol.ys[-1]

    times, _ = found(t0, t1)
    torch.testing.assert_close(times, (t0**2 + 2 * math.log(2) * torch.arange(1, len(times) + 1, dtype=D)).sqrt())
    assert torch.autograd.gradcheck(found, (t0, t1), atol=1e-5, rtol=1e-4)


def test_a_tangential_touch_has_no_derivative_and_no_nan() -> None:
    start = scalar(0.0)
    event = pdf.Event(lambda t, y: (t - 0.5) ** 3 + 0 * y[0])
    sol = solve(lambda t, y: torch.ones_like(y), start.reshape(1), (0.0, 1.0), event=event)
    assert float(sol.events[0].ts[0]) == pytest.approx(0.5, abs=1e-4)
    (grad,) = torch.autograd.grad(sol.ys[-1, 0], start)
    assert float(grad) == pytest.approx(1.0)


@pytest.mark.parametrize("sensealg", ["BacksolveAdjoint", "InterpolatingAdjoint", "GaussAdjoint", "QuadratureAdjoint"])
def test_the_state_at_an_event_with_continuous_adjoints(sensealg: str) -> None:
    height = scalar(5.0)
    sol = solve(ball, dropped(height), (0.0, 9.0), event=lambda t, y: y[0], sensealg=sensealg, save_everystep=False)
    (grad,) = torch.autograd.grad(sol.ys[-1, 1], height)
    assert float(grad) == pytest.approx(-math.sqrt(G / 10), rel=1e-5)


# -- doses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "vern7", "rodas5p", "qndf"])
def test_doses_against_the_exact_solution(method: str) -> None:
    when = numbers(2.0, 0.5)  # in any order
    dose = pdf.PresetTimeCallback(when, lambda t, y: y + 3.0 * t)
    saves = torch.linspace(0.0, 3.0, 13, dtype=D)
    sol = solve(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 3.0), method, callbacks=dose, saveat=saves)
    exact = (-saves).exp()
    for t in when:  # a value saved at a dose's time is the one before it
        exact = exact + torch.where(saves > t, 3.0 * t * (t - saves).exp(), 0.0)
    torch.testing.assert_close(sol.ys[:, 0], exact, rtol=1e-6, atol=1e-7)


def test_gradients_of_doses() -> None:
    def f(amount: Tensor, when: Tensor, rate: Tensor) -> Any:
        dose = pdf.PresetTimeCallback(when, lambda t, y: y + amount)
        y0 = torch.ones(1, dtype=D)
        return solve(lambda t, y: -rate * y, y0, (0.0, 3.0), callbacks=dose, saveat=[0.1, 1.0, 3.0]).ys

    amount, rate = scalar(2.0), scalar(0.8)
    when = numbers(0.5, 2.0).requires_grad_()
    assert torch.autograd.gradcheck(f, (amount, when, rate), atol=1e-5, rtol=1e-4)
    grads = torch.autograd.grad(f(amount, when, rate)[-1], [amount, when])
    decay = (-0.8 * (3 - when.detach())).exp()
    torch.testing.assert_close(grads[0], decay.sum(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grads[1], 2.0 * 0.8 * decay, rtol=1e-6, atol=1e-7)


def test_a_dose_and_its_time_in_every_step() -> None:
    dose = pdf.PresetTimeCallback([1.0], lambda t, y: y + 5.0)
    sol = solve(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 2.0), callbacks=dose)
    at = (sol.ts == 1.0).nonzero().flatten().tolist()
    assert len(at) == 2, "the state before the dose and the one after it"
    assert float(sol.ys[at[1], 0] - sol.ys[at[0], 0]) == pytest.approx(5.0)
    assert float(sol(1.0)) == pytest.approx(math.exp(-1.0) + 5.0, rel=1e-7)
    assert float(sol(0.999999999)) == pytest.approx(math.exp(-1.0), rel=1e-6)


def test_doses_at_both_ends() -> None:
    dose = pdf.PresetTimeCallback([0.0, 2.0], lambda t, y: y + 10.0)
    f = lambda t, y: 0 * y  # noqa: E731
    y0 = torch.zeros(1, dtype=D)
    saved = solve(f, y0, (0.0, 2.0), callbacks=dose, saveat=[0.0, 1.0, 2.0])
    assert saved.ys[:, 0].tolist() == [0.0, 10.0, 10.0], "what is saved at a dose is the value before it"
    assert solve(f, y0, (0.0, 2.0), callbacks=dose, save_everystep=False).ys[:, 0].tolist() == [20.0]
    steps = solve(f, y0, (0.0, 2.0), callbacks=dose)
    assert steps.ys[-2:, 0].tolist() == [10.0, 20.0]
    assert steps.ts[-2:].tolist() == [2.0, 2.0]


def test_the_save_time_at_a_dose_at_the_start_keeps_its_gradient() -> None:
    dose = pdf.PresetTimeCallback([0.0], lambda t, y: y + 10.0)
    saves = numbers(0.0, 1.0).requires_grad_()
    sol = solve(lambda t, y: -y, torch.ones(1, dtype=D), (0.0, 1.0), callbacks=dose, saveat=saves)
    (grad,) = torch.autograd.grad(sol.ys.sum(), saves)
    torch.testing.assert_close(grad, numbers(-1.0, -11 * math.exp(-1.0)), rtol=1e-7, atol=1e-8)


def test_several_doses_at_one_time_and_some_outside() -> None:
    double = pdf.PresetTimeCallback([1.0, 7.0], lambda t, y: 2 * y)
    add = pdf.PresetTimeCallback([1.0, -1.0], lambda t, y: y + 1.0)
    sol = solve(lambda t, y: 0 * y, torch.ones(1, dtype=D), (0.0, 2.0), callbacks=[double, add], save_everystep=False)
    assert sol.ys[-1].tolist() == [3.0]


def test_doses_in_reversed_time() -> None:
    dose = pdf.PresetTimeCallback([-0.5, -1.5], lambda t, y: y + t)
    y0 = torch.zeros(1, dtype=D)
    sol = solve(lambda t, y: 0 * y, y0, (0.0, -2.0), callbacks=dose, saveat=[-0.4, -0.6, -1.6, -2.0])
    assert sol.ys[:, 0].tolist() == [0.0, -0.5, -2.0, -2.0]


def test_doses_of_a_structured_state() -> None:
    dose = pdf.PresetTimeCallback([1.0], lambda t, y: {"a": y["a"] + 1, "b": y["b"]})
    y0 = {"a": torch.zeros(2, dtype=D), "b": torch.ones(1, dtype=D)}
    sol = solve(lambda t, y: {"a": 0 * y["a"], "b": -y["b"]}, y0, (0.0, 2.0), callbacks=dose, save_everystep=False)
    assert sol.ys["a"][-1].tolist() == [1.0, 1.0]
    assert float(sol.ys["b"][-1]) == pytest.approx(math.exp(-2.0), rel=1e-7)


def test_doses_and_events_together() -> None:
    """A level sensor that empties a tank, while doses fill it."""
    fill = pdf.PresetTimeCallback([1.0, 2.5], lambda t, y: y + 0.6)
    empty = pdf.Event(lambda t, y: y[0] - 1.0, terminal=False, direction=1, affect=lambda t, y: 0 * y)
    sol = solve(lambda t, y: 0.2 * torch.ones_like(y), torch.zeros(1, dtype=D), (0.0, 3.5), event=empty,
                callbacks=fill, save_everystep=False)  # fmt: skip
    torch.testing.assert_close(sol.events[0].ts, numbers(2.0))
    assert float(sol.ys[-1]) == pytest.approx(0.2 * 1.5 + 0.6, abs=1e-9)


# -- bad arguments ------------------------------------------------------------------------------


def test_bad_conditions_and_affects() -> None:
    y0 = torch.ones(2, dtype=D)
    bad: list[Callable[[Tensor, Any], Any]] = [
        lambda t, y: 1.0,
        lambda t, y: None,
        lambda t, y: y.to(torch.complex128),
    ]
    for condition in bad:
        with pytest.raises(ShapeError, match="condition must return a real tensor"):
            solve(lambda t, y: -y, y0, (0.0, 1.0), event=condition)
    for affect in (lambda t, y: y[:1], lambda t, y: 3.0):
        jump = pdf.Event(lambda t, y: y[0] - 0.5, terminal=False, affect=affect)
        with pytest.raises(ShapeError, match="affect returned"):
            solve(lambda t, y: -y, y0, (0.0, 1.0), event=jump)
        with pytest.raises(ShapeError, match="affect returned"):
            solve(lambda t, y: -y, y0, (0.0, 1.0), callbacks=pdf.PresetTimeCallback([0.5], affect))
    part = pdf.PresetTimeCallback([0.5], lambda t, y: (y[0],))
    with pytest.raises(ShapeError, match="structure of y0"):
        solve(lambda t, y: (-y[0], -y[1]), (y0, y0), (0.0, 1.0), callbacks=part)


def test_bad_descriptions() -> None:
    with pytest.raises(InvalidArgumentError, match="condition=3"):
        pdf.Event(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="direction=2"):
        pdf.Event(lambda t, y: y, direction=2)
    with pytest.raises(InvalidArgumentError, match="interp_points=-1"):
        pdf.Event(lambda t, y: y, interp_points=-1)
    with pytest.raises(InvalidArgumentError, match="affect=None"):
        pdf.PresetTimeCallback([1.0], None)  # type: ignore[arg-type]
    with pytest.raises(InvalidTimesError, match=r"times\[1\]"):
        pdf.PresetTimeCallback([1.0, math.nan], lambda t, y: y)
    with pytest.raises(InvalidTimesError, match="one-dimensional"):
        pdf.PresetTimeCallback(torch.ones(2, 2), lambda t, y: y)
    with pytest.raises(InvalidArgumentError, match="PresetTimeCallback"):
        pdf.solve(pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0)), callbacks=[lambda t, y: y])  # type: ignore[list-item]
