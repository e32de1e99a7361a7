"""Delay equations on the native backend: against exact solutions, chains of ODEs solved by SciPy, and differences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import pydiffeqflux as pdf
from pydiffeqflux.errors import MaxStepsError, StepUnderflowError

F64 = torch.float64
ADAPTIVE = ["tsit5", "dopri5", "vern7", "vern9", "dopri8", "bosh3", "rosenbrock23", "rodas5p", "kencarp4"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(torch.float32)


def tensor(x: Any, grad: bool = True) -> Tensor:
    return torch.tensor(x, dtype=F64, requires_grad=grad)


# -- references -----------------------------------------------------------------------------------


def steps_exact(t: Tensor) -> Tensor:
    """``u' = -u(t - 1)`` with ``u = 1`` up to 0: sum_k (-1)^k (t - k + 1)^k / k! over k <= t + 1."""
    terms = [(-1.0) ** k * (t - (k - 1)).clamp_min(0) ** k / math.factorial(k) for k in range(1, 14)]
    return 1 + sum(terms)


def as_chain(
    f: Callable[..., np.ndarray], history: Callable[[float], np.ndarray], lags: tuple[int, ...], unit: float, ts: Any
) -> np.ndarray:
    """The solution from 0 on with lags ``unit * lags``, as a chain of ODEs: no delayed state is ever interpolated.

    With z_k(s) = y(s + k unit), the delay equation on [0, (n + 1) unit] is an ODE for z_0, ..., z_n on [0, unit]. The
    k-th state at its start is the one before at its end.
    """
    d, found, begins = len(history(0.0)), {}, [history(0.0)]
    ts = np.asarray(ts)
    count = math.ceil(ts.max() / unit - 1e-9)
    for k in range(count):

        def field(s: float, flat: np.ndarray) -> np.ndarray:
            z = flat.reshape(-1, d)
            at = lambda i: z[i] if i >= 0 else history(s + i * unit)  # noqa: E731
            return np.concatenate([f(s + i * unit, z[i], *(at(i - lag) for lag in lags)) for i in range(len(z))])

        start = np.concatenate(begins)
        for t in ts:
            if k * unit < t <= (k + 1) * unit + 1e-12:
                until = solve_ivp(field, (0, t - k * unit), start, "DOP853", rtol=1e-12, atol=1e-13)
                found[float(t)] = until.y[:, -1].reshape(-1, d)[k]
        done = solve_ivp(field, (0, unit), start, "DOP853", rtol=1e-12, atol=1e-13)
        begins.append(done.y[:, -1].reshape(-1, d)[k])
    return np.stack([found[float(t)] for t in ts])


def wright(t: Any, y: Any, past: Any) -> Any:
    """Hairer, Norsett & Wanner I, equation (II.17.11): ``y' = -lambda y(t - 1) (1 + y)``."""
    return -1.4 * past * (1 + y)


def wright_reference(ts: Any) -> np.ndarray:
    return as_chain(wright, lambda t: np.array([0.1 + 0.2 * math.sin(t)]), (1,), 1.0, ts)


def wright_problem(end: float = 5.0, **options: Any) -> pdf.DDEProblem:
    return pdf.DDEProblem(
        wright, tensor([0.1], False), (0.0, end), lags=1.0, history=lambda t: 0.1 + 0.2 * torch.sin(t)[None], **options
    )


# -- constant lags --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ADAPTIVE)
def test_piecewise_polynomials(method: str) -> None:
    ts = torch.linspace(0, 6, 25)
    problem = pdf.DDEProblem(lambda t, y, past: -past, torch.ones(1), (0.0, 6.0), lags=1.0)
    tol = 1e-5 if method == "rosenbrock23" else 1e-7
    with torch.no_grad():
        sol = pdf.solve(problem, method, saveat=ts, rtol=tol, atol=tol)
        ends = pdf.solve(problem, method, rtol=tol, atol=tol).ts
    assert (sol.ys[:, 0] - steps_exact(ts)).abs().max() < (100 if method == "rosenbrock23" else 10) * tol
    # A step ends at every breaking point up to the method's order, and none is longer than the lag.
    order = pdf.methods.resolve(method).order
    assert set(range(min(order, 6))) <= set(ends.tolist())
    assert (ends[1:] - ends[:-1]).max() <= 1 + 1e-12


@pytest.mark.parametrize("method", [*FIXED, "bosh3", "tsit5", "dopri5", "vern7"])
def test_order_of_convergence_across_breaking_points(method: str) -> None:
    """Steps that do not meet the breaking points of their own accord, and delayed times between the steps."""
    chosen = pdf.methods.resolve(method)
    ts = [1.7, 2.9, 4.3, 5.0]
    exact = torch.as_tensor(wright_reference(ts))
    sizes = [0.3, 0.15] if chosen.order >= 5 else [0.07, 0.035]
    errors = []
    for dt in sizes:
        fixed = {"dt_min": dt * (1 - 1e-9), "dt_max": dt} if chosen.adaptive else {}
        with torch.no_grad():
            sol = pdf.solve(wright_problem(), method, saveat=ts, dt=dt, **fixed)
        errors.append(float((sol.ys - exact).abs().max()))
    assert math.log2(errors[0] / errors[1]) > chosen.order - 0.35, errors


@pytest.mark.parametrize("method", ["tsit5", "vern9", "rodas5p"])
def test_two_lags_and_a_matrix_against_scipy(method: str) -> None:
    ts = [0.3, 1.0, 1.75, 2.5]
    a, b = np.array([[-0.5, 1.0], [-1.2, 0.1]]), np.array([[0.2, -0.7], [0.9, -0.3]])
    exact = as_chain(
        lambda t, y, p, q: np.tanh(a @ p) + b @ q - 0.3 * t * y,
        lambda t: np.array([math.cos(t), 1 + t]),
        (2, 3),
        0.25,
        ts,
    )
    wide = [torch.as_tensor(m) for m in (a, b)]
    problem = pdf.DDEProblem(
        lambda t, y, p, q: torch.tanh(wide[0] @ p) + wide[1] @ q - 0.3 * t * y,
        torch.ones(2),
        (0.0, 2.5),
        lags=torch.tensor([0.5, 0.75]),
        history=lambda t: torch.stack([t.cos(), 1 + t]),
    )
    with torch.no_grad():
        sol = pdf.solve(problem, method, saveat=ts, rtol=1e-9, atol=1e-10)
    assert (sol.ys - torch.as_tensor(exact)).abs().max() < 3e-8


def test_a_stiff_delay_equation() -> None:
    """``y' = -1000 (y - cos t) + y(t - 1) - cos(t - 1) - sin t``, whose solution stays ``cos t``."""
    problem = pdf.DDEProblem(
        lambda t, y, past: -1000 * (y - t.cos()) + past - (t - 1).cos() - t.sin(),
        torch.ones(1),
        (0.0, 5.0),
        lags=1.0,
        history=lambda t: t.cos()[None],
    )
    with torch.no_grad():
        sol = pdf.solve(problem, "rodas5p", saveat=[2.5, 5.0], rtol=1e-7, atol=1e-7)
    assert (sol.ys[:, 0] - sol.ts.cos()).abs().max() < 1e-6
    assert sol.stats.naccept < 120


def test_small_lags_are_stepped_one_by_one() -> None:
    problem = pdf.DDEProblem(lambda t, y, past: -past, torch.ones(1), (0.0, 1.0), lags=0.01)
    sol = pdf.solve(problem, "tsit5", rtol=1e-3)
    assert 100 <= sol.stats.naccept <= 110
    exact = as_chain(lambda t, y, p: -p, lambda t: np.ones(1), (1,), 0.1, [1.0])
    assert abs(float(sol.ys[-1]) - math.exp(-1.0101)) < 2e-3 and exact.shape == (1, 1)


def test_a_history_is_not_asked_for_the_future() -> None:
    """Not even by rounding: 0.1 + 0.7 - 0.7 is more than 0.1."""
    asked: list[float] = []

    def history(t: Tensor) -> Tensor:
        asked.append(float(t))
        return t.cos()[None]

    problem = pdf.DDEProblem(lambda t, y, p, q: -p - q, torch.ones(1), (0.1, 2.5), lags=(0.7, 0.3), history=history)
    pdf.solve(problem, "vern7", rtol=1e-8)
    assert min(asked) > -0.6 - 1e-12 and max(asked) <= 0.1


# -- jumps ----------------------------------------------------------------------------------------


def test_a_history_that_ends_elsewhere_than_the_state_begins() -> None:
    """``y' = -y(t - tau)``, 1 before 0 and 2 at 0: two polynomials, and the derivative in tau of where they meet."""
    tau, two, one = tensor(0.8), torch.full((1,), 2.0), torch.ones(1)
    problem = pdf.DDEProblem(lambda t, y, past: -past, two, (0.0, 1.6), lags=tau, history=one)
    sol = pdf.solve(problem, "tsit5", saveat=[0.5, 1.5])
    s = 1.5 - 0.8
    assert torch.allclose(sol.ys[:, 0], torch.tensor([1.5, 2 - 0.8 - 2 * s + s**2 / 2]), atol=1e-12)
    sol.ys[1].sum().backward()
    # The kink moves: a derivative that let it stand would be -1 + 2 - s - (jump of 1).
    assert torch.allclose(tau.grad, torch.tensor(-1 + 2 - s), atol=1e-12)


def test_a_dose_comes_back_a_lag_later() -> None:
    dose = pdf.PresetTimeCallback([0.5], lambda t, y: y + 1)
    problem = pdf.DDEProblem(lambda t, y, past: -past, torch.ones(1), (0.0, 2.0), lags=1.0)
    sol = pdf.solve(problem, "tsit5", callbacks=dose, saveat=[0.25, 0.75, 1.25, 1.75], rtol=1e-9)
    plain = steps_exact(sol.ts)
    extra = torch.tensor([0.0, 1.0, 1.0, 1.0 - 0.25])
    assert torch.allclose(sol.ys[:, 0], plain + extra, atol=1e-12)
    ends = pdf.solve(problem, "tsit5", callbacks=dose).ts.tolist()
    assert {0.5, 1.0, 1.5} <= set(ends)


def test_an_event_that_changes_the_state_comes_back_a_lag_later() -> None:
    bounce = pdf.Event(lambda t, y: y[0] - 0.25, terminal=False, affect=lambda t, y: y + 1)  # at t = 0.75
    problem = pdf.DDEProblem(lambda t, y, past: -past, torch.ones(1), (0.0, 1.9), lags=1.0)
    sol = pdf.solve(problem, "tsit5", event=bounce, rtol=1e-10, atol=1e-10)
    assert abs(float(sol.events[0].ts[0]) - 0.75) < 1e-12
    # After 1 the slope is -(1 - (t - 1)), after 1.75 less by one.
    exact = 1.0 - (0.9 - 0.9**2 / 2) - 0.15
    assert abs(float(sol.ys[-1]) - exact) < 1e-10


def test_jumps_of_the_right_hand_side_spread_too() -> None:
    """``y' = [t > 0.5] - y(t - 1)`` with nothing before: given the jump at 0.5, its kink at 1.5 is found."""
    problem = pdf.DDEProblem(
        lambda t, y, past: torch.where(t > 0.5, 1.0, 0.0) - past, torch.zeros(1), (0.0, 2.4), lags=1.0
    )
    sol = pdf.solve(problem, "tsit5", tstops=[0.5])
    assert {0.5, 1.5} <= set(sol.ts.tolist())
    t = sol.ts[-1]
    assert torch.allclose(sol.ys[-1], t - 0.5 - (t - 1.5) ** 2 / 2, atol=1e-12)


# -- state-dependent lags -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "vern7", "dopri8", "bosh3", "rodas5p"])
def test_a_state_dependent_lag_that_passes_the_start(method: str) -> None:
    """Paul's ``u' = u(u(t) - sqrt 2 + 1) / (2 sqrt t)``, 1 up to 1: at t = 2 its delayed time leaves the history."""
    root = math.sqrt(2)
    problem = pdf.DDEProblem(
        lambda t, y, past: past / (2 * t.sqrt()),
        torch.ones(1),
        (1.0, 5.0),
        lags=lambda t, y: t - (y[0] - root + 1),
    )
    ts = torch.linspace(1, 5, 21)
    tol = 1e-6 if method == "bosh3" else 1e-9
    with torch.no_grad():
        sol = pdf.solve(problem, method, saveat=ts, rtol=tol, atol=tol)
        ends = pdf.solve(problem, method, rtol=tol, atol=tol).ts
    exact = torch.where(ts <= 2, ts.sqrt(), ts / 4 + 0.5 + (1 - root / 2) * ts.sqrt())
    assert (sol.ys[:, 0] - exact).abs().max() < 10 * tol
    assert (ends - 2).abs().min() < 10 * tol


def test_the_passing_is_located_and_not_crept_up_on() -> None:
    """Neves' ``y' = exp(y(y(t) - ln 2 + 1)) / t``, 0 up to 1: ln t up to t = 2, then a straight line."""
    problem = pdf.DDEProblem(
        lambda t, y, past: past.exp() / t, torch.zeros(1), (1.0, 4.0), lags=lambda t, y: t - (y[0] - math.log(2) + 1)
    )
    ts = torch.linspace(1, 4, 13)
    with torch.no_grad():
        sol = pdf.solve(problem, "vern7", saveat=ts, rtol=1e-10, atol=1e-10)
    exact = torch.where(ts <= 2, ts.log(), ts / 2 + math.log(2) - 1)
    assert (sol.ys[:, 0] - exact).abs().max() < 1e-10
    assert sol.stats.naccept < 20 and sol.stats.nreject < 5


def test_a_delayed_time_that_touches_the_start_and_turns_back() -> None:
    """``y' = cos(t) y(y(t) - 2)``, 1 up to 0: ``1 + sin t``, whose delayed time sin(t) - 1 comes up to 0."""
    problem = pdf.DDEProblem(
        lambda t, y, past: t.cos() * past, torch.ones(1), (0.0, 10.0), lags=lambda t, y: t - (y[0] - 2)
    )
    with torch.no_grad():
        sol = pdf.solve(problem, "vern7", saveat=0.5, rtol=1e-9, atol=1e-9)
    assert (sol.ys[:, 0] - 1 - sol.ts.sin()).abs().max() < 1e-8


def test_a_constant_lag_as_a_function_is_the_same_equation() -> None:
    exact = torch.as_tensor(wright_reference([2.5, 5.0]))
    with torch.no_grad():
        problem = pdf.DDEProblem(
            wright,
            tensor([0.1], False),
            (0.0, 5.0),
            lags=lambda t, y: torch.ones(()),
            history=lambda t: 0.1 + 0.2 * torch.sin(t)[None],
        )
        sol = pdf.solve(problem, "vern7", saveat=[2.5, 5.0], rtol=1e-9, atol=1e-9)
    assert (sol.ys - exact).abs().max() < 1e-8


def test_a_jump_of_the_state_seen_through_a_state_dependent_lag() -> None:
    """``y' = 1 + y(t - lag)``, lag = 1/2 + t/4: the delayed time 3t/4 - 1/2 passes 0 at t = 2/3, where y' jumps."""
    problem = pdf.DDEProblem(
        lambda t, y, past: 1 + past, torch.ones(1), (0.0, 1.0), lags=lambda t, y: 0.5 + t / 4, history=torch.zeros(1)
    )
    sol = pdf.solve(problem, "tsit5", rtol=1e-8, atol=1e-8)
    assert (sol.ts - 2 / 3).abs().min() < 1e-12
    # Up to 2/3 y = 1 + t; then y' = 2 + (3t/4 - 1/2).
    exact = 1 + 2 / 3 + 1.5 / 3 + 3 / 8 * (1 - 4 / 9)
    assert abs(float(sol.ys[-1]) - exact) < 1e-10


def test_two_lags_that_pass_the_start_together() -> None:
    """The last one again, its delayed state read twice, by lags that are one up to rounding."""
    problem = pdf.DDEProblem(
        lambda t, y, p, q: 1 + (p + q) / 2,
        torch.ones(1),
        (0.0, 1.0),
        lags=(lambda t, y: 0.5 + t / 4, lambda t, y: (2 + t) / 4),
        history=torch.zeros(1),
    )
    sol = pdf.solve(problem, "tsit5", rtol=1e-8, atol=1e-8)
    assert abs(sol.ys[-1].item() - (1 + 2 / 3 + 1.5 / 3 + 3 / 8 * (1 - 4 / 9))) < 1e-10


# -- gradients ------------------------------------------------------------------------------------


def everything(y0: Tensor, a: Tensor, taus: Tensor, h: Tensor, ends: Tensor, saves: Tensor, **options: Any) -> Tensor:
    """A solution as a function of all that it depends on, with a jump at the start."""
    problem = pdf.DDEProblem(
        lambda t, y, p, q: torch.tanh(a @ p) + 0.3 * q * y - 0.2 * t * y,
        y0,
        (ends[0], ends[1]),
        lags=taus,
        history=lambda t: h * torch.cos(2 * t) + t * t,
    )
    sol = pdf.solve(problem, saveat=saves, **options)
    return torch.cat([sol.ys.flatten(), sol(1.3), sol(ends[1])])


def arguments() -> tuple[Tensor, ...]:
    return (
        tensor([1.0, 0.5]),
        tensor([[-0.5, 0.3], [0.1, -0.8]]),
        tensor([0.713, 0.457]),
        tensor([0.8, 0.9]),
        tensor([0.1, 2.1]),
        tensor([0.5, 1.1, 2.0]),
    )


@pytest.mark.parametrize(
    ("method", "options"),
    [("rk4", {"dt": 0.2}), ("tsit5", {"rtol": 1e-9, "atol": 1e-9}), ("vern7", {"rtol": 1e-9, "atol": 1e-9})],
)
def test_gradients_of_everything(method: str, options: dict[str, Any]) -> None:
    function = lambda *given: everything(*given, method=method, **options)  # noqa: E731
    assert gradcheck(function, arguments(), atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bosh3", "dopri5", "dopri8", "vern9", "rodas5p", "kencarp4"])
def test_gradients_of_everything_with_other_methods(method: str) -> None:
    tol = 1e-7 if method in ("bosh3", "kencarp4") else 1e-9
    function = lambda *given: everything(*given, method=method, rtol=tol, atol=tol)  # noqa: E731
    assert gradcheck(function, arguments(), atol=1e-5, rtol=1e-4, fast_mode=True)


def test_gradients_in_every_entry() -> None:
    function = lambda taus, h, ends: everything(*arguments()[:2], taus, h, ends, arguments()[5], method="rk4", dt=0.3)  # noqa: E731
    assert gradcheck(function, arguments()[2:5], atol=1e-7, rtol=1e-6)


def through_state(c: Tensor, tau: Tensor, y0: Tensor, t0: Tensor, **options: Any) -> Tensor:
    problem = pdf.DDEProblem(
        lambda t, y, p, q: torch.tanh(p).flip(0) + 0.3 * q * y,
        y0,
        (t0, 2.1),
        lags=(lambda t, y: c[0] + c[1] * torch.sin(y[0]) ** 2, tau),
        history=lambda t: torch.stack([t.cos(), 1 + t]),
    )
    return pdf.solve(problem, saveat=[1.0, 2.1], **options).ys


@pytest.mark.parametrize(
    ("method", "options"), [("rk4", {"dt": 0.2}), ("tsit5", {"rtol": 1e-8, "atol": 1e-8}), ("vern7", {"rtol": 1e-8})]
)
def test_gradients_of_state_dependent_lags(method: str, options: dict[str, Any]) -> None:
    """With a jump of the state at the start: the times at which delayed times pass it move with everything."""
    given = (tensor([0.613, 0.1]), tensor(0.457), tensor([1.1, 0.6]), tensor(0.1))
    function = lambda *given: through_state(*given, method=method, **options)  # noqa: E731
    assert gradcheck(function, given, atol=1e-6, rtol=1e-5, fast_mode=True)


def test_second_derivatives() -> None:
    def final(tau: Tensor, k: Tensor) -> Tensor:
        problem = pdf.DDEProblem(lambda t, y, past: -k * past * y, torch.ones(1), (0.0, 1.2), lags=tau)
        return pdf.solve(problem, "rk4", dt=0.2).ys[-1]

    assert gradgradcheck(final, (tensor(0.37), tensor(0.8)))


def test_torch_func_transforms() -> None:
    def final(y0: Tensor, k: Tensor) -> Tensor:
        problem = pdf.DDEProblem(lambda t, y, past: -k * past, y0, (0.0, 1.5), lags=1.0)
        return pdf.solve(problem, "tsit5", saveat=[1.5]).ys[0]

    y0, k = torch.tensor([1.0, 2.0]), torch.tensor(0.7)
    exact = 1 - k * 1.5 + k**2 * 0.125
    assert torch.allclose(torch.func.jacrev(final)(y0, k), exact * torch.eye(2), atol=1e-6)
    assert torch.allclose(torch.func.jacfwd(final, 1)(y0, k), (-1.5 + 0.25 * k) * y0, atol=1e-6)
    assert torch.allclose(torch.func.vmap(final, (0, None))(torch.stack([y0, 2 * y0]), k)[1], exact * 2 * y0, atol=1e-6)


# -- the common interface -------------------------------------------------------------------------


def test_states_that_are_structures_or_batches_or_single_precision() -> None:
    ts = [0.5, 2.5]
    exact = steps_exact(torch.tensor(ts))

    def func(t: Tensor, y: Any, past: Any) -> Any:
        return {"a": -past["a"], "b": (-past["b"][0],)}

    y0 = {"a": torch.ones(2, 3), "b": (torch.full((1,), 2.0),)}
    sol = pdf.solve(pdf.DDEProblem(func, y0, (0.0, 2.5), lags=(1.0,)), "vern7", saveat=ts, rtol=1e-9)
    assert torch.allclose(sol.ys["a"], exact[:, None, None].expand(2, 2, 3), atol=1e-9)
    assert torch.allclose(sol.ys["b"][0], 2 * exact[:, None], atol=1e-9)
    assert torch.allclose(sol(0.5)["a"], sol.ys["a"][0])
    lag = lambda t, y: 1 + 0 * y["a"].sum()  # noqa: E731
    history = lambda t: {"a": torch.ones(2, 3), "b": (torch.full((1,), 2.0),)}  # noqa: E731
    again = pdf.solve(pdf.DDEProblem(func, y0, (0.0, 2.5), lags=lag, history=history), "vern7", saveat=ts, rtol=1e-9)
    assert torch.allclose(again.ys["a"], sol.ys["a"], atol=1e-9)

    single = torch.ones(2, 3, dtype=torch.float32)
    tau = torch.tensor(1.0, dtype=torch.float32, requires_grad=True)
    for lags in (1.0, tau, lambda t, y: tau + 0 * y.sum()):
        sol = pdf.solve(pdf.DDEProblem(lambda t, y, p: -p, single, (0.0, 2.5), lags=lags), saveat=ts, rtol=1e-6)
        assert sol.ys.dtype == torch.float32
        assert torch.allclose(sol.ys[:, 0, 0].double(), exact, atol=1e-5)


def test_rows_of_a_batch_have_jacobians_of_their_own() -> None:
    y0 = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.5, 0.5]])
    sols = [
        pdf.solve(
            pdf.DDEProblem(lambda t, y, past: -y**3 - past.flip(-1), y0, (0.0, 2.0), lags=0.6, batched=batched),
            "rodas5p",
            saveat=[2.0],
            rtol=1e-8,
        ).ys
        for batched in (True, False)
    ]
    assert torch.allclose(*sols, atol=1e-10)


def test_dense_output_and_statistics() -> None:
    with torch.no_grad():
        sol = pdf.solve(wright_problem(), "tsit5", rtol=1e-7, atol=1e-7)
        assert torch.allclose(sol(sol.ts), sol.ys)
        ts = [0.8, 2.2, 4.9]
        assert torch.allclose(sol(ts), torch.as_tensor(wright_reference(ts)), atol=1e-5)
    assert sol.status is pdf.Status.SUCCESS
    assert sol.stats.backend == "torch" and sol.stats.method == "tsit5" and sol.stats.nf > 6 * sol.stats.naccept
    assert pdf.solve(wright_problem()).stats.sensealg == "DiscreteAdjoint"


def test_an_event_ends_it() -> None:
    k = tensor(1.0)
    problem = pdf.DDEProblem(lambda t, y, past: -k * past, torch.ones(1), (0.0, 5.0), lags=1.0)
    sol = pdf.solve(problem, event=lambda t, y: y[0] + 0.25, rtol=1e-9, atol=1e-9)  # on the second polynomial
    when = sol.events[0].ts[0]
    assert sol.status is pdf.Status.EVENT and abs(float(when.detach()) - (2 - math.sqrt(0.5))) < 1e-9
    (slope,) = torch.autograd.grad(when, k)
    s = 1 - math.sqrt(0.5)  # 1 - k t + k^2 s^2 / 2 = -1/4
    assert abs(float(slope) - (-(1 + s) + s**2) / (1 - s)) < 1e-7


def test_failures_say_why() -> None:
    blow_up = pdf.DDEProblem(lambda t, y, past: y**2 + past, torch.ones(1), (0.0, 3.0), lags=1.0)
    sol = pdf.solve(blow_up, throw=False)
    assert not sol.status.ok and float(sol.ts[-1]) < 1.0
    with pytest.raises(MaxStepsError, match="max_steps=5"):
        pdf.solve(wright_problem(50.0), max_steps=5)
    vanishing = pdf.DDEProblem(
        lambda t, y, past: past, torch.ones(1), (0.0, 2.0), lags=lambda t, y: (1 - t).clamp_min(1e-300)
    )
    with pytest.raises(StepUnderflowError, match=r"state-dependent lag shrank to .*at t=1 "):
        pdf.solve(vanishing)
    shrinking = pdf.DDEProblem(lambda t, y, past: past, torch.ones(1), (0.0, 2.0), lags=lambda t, y: 1.2 - t / 2)
    with pytest.raises(StepUnderflowError, match=r"a step of dt=0.5 is longer than a state-dependent lag"):
        pdf.solve(shrinking, "rk4", dt=0.5)


# -- the layer ------------------------------------------------------------------------------------


class Decay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, t: Tensor) -> Tensor:
        return self.level * torch.exp(0.1 * t)


def test_layer_calls_its_model_as_the_signature_says() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    y0 = torch.randn(5, 2)
    joined = pdf.NeuralDDE(net, (0.0, 1.0), 0.4)
    separate = pdf.NeuralDDE(lambda y, past: net(torch.cat([y, past], -1)), (0.0, 1.0), 0.4)
    timed = pdf.NeuralDDE(lambda t, y, past: net(torch.cat([y, past], -1)), (0.0, 1.0), 0.4)
    stated = pdf.NeuralDDE(lambda *states: net(torch.cat(states, -1)), (0.0, 1.0), 0.4, inputs="separate")
    assert [layer.inputs for layer in (joined, separate, timed, stated)] == ["joined", "separate", "timed", "separate"]
    assert joined(y0).shape == (5, 2)
    for other in (separate, timed, stated):
        assert torch.equal(joined(y0), other(y0))
    assert "lags=(0.4)" in repr(joined)


def test_layer_trains_model_history_and_lags() -> None:
    torch.manual_seed(0)
    net = nn.Linear(6, 2)
    layer = pdf.NeuralDDE(
        net, (0.0, 1.5), (nn.Parameter(torch.tensor(0.6)), 0.3), Decay(), saveat=[0.5, 1.0, 1.5], rtol=1e-8, atol=1e-8
    )
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"model.weight", "model.bias", "lag0", "history.level"}
    y0 = torch.tensor([1.0, 2.0])
    assert layer(y0).shape == (3, 2)
    for parameter in layer.parameters():
        (slope,) = torch.autograd.grad(layer(y0).sum(), parameter)
        direction = torch.ones_like(parameter)
        with torch.no_grad():
            sums = []
            for sign in (1, -1):
                parameter += sign * 1e-5 * direction
                sums.append(float(layer(y0).sum()))
                parameter -= sign * 1e-5 * direction
        assert abs((sums[0] - sums[1]) / 2e-5 - float(slope.sum())) < 1e-5


def test_layer_takes_a_history_for_one_call_and_a_vector_of_lags() -> None:
    layer = pdf.NeuralDDE(lambda y, p, q: -p - q, (0.0, 0.5), nn.Parameter(torch.tensor([0.5, 0.7])))
    assert [name for name, _ in layer.named_parameters()] == ["lag0"]
    y0 = torch.ones(1)
    assert torch.allclose(layer(y0), torch.zeros(1), atol=1e-12)
    assert torch.allclose(layer(y0, torch.zeros(1)), y0)
    assert torch.allclose(layer.solve(y0, lambda t: t[None]).ys[-1], torch.tensor([1 + 0.5 * 1.2 - 0.25]))


def test_lags_are_learnt() -> None:
    """The lag of ``y' = -1.2 y(t - tau)`` from a trajectory."""
    ts = torch.linspace(0.2, 4, 20)

    def make(tau: Any) -> pdf.NeuralDDE:
        return pdf.NeuralDDE(lambda y, past: -1.2 * past, (0.0, 4.0), tau, saveat=ts, rtol=1e-6)

    with torch.no_grad():
        data = make(0.9)(torch.ones(1))
    layer = make(nn.Parameter(torch.tensor(0.5)))
    optimiser = torch.optim.LBFGS(layer.parameters(), line_search_fn="strong_wolfe", max_iter=25)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (layer(torch.ones(1)) - data).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert abs(layer.lag0.item() - 0.9) < 1e-3


def test_times_are_not_looked_up_between_equal_neighbours() -> None:
    """Lags that are multiples of each other lead to the same breaking points, which rounding keeps apart."""
    problem = pdf.DDEProblem(lambda t, y, p, q: -p - q, torch.ones(1), (0.0, 1.0), lags=(0.1, 0.3))
    ends = pdf.solve(problem, "tsit5").ts.tolist()
    assert min(b - a for a, b in itertools.pairwise(ends)) > 1e-3
