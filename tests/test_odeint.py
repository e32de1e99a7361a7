"""torchdiffeq's interface: what it takes, what it returns, what it warns of, and its gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import odeint, odeint_adjoint, odeint_dense, odeint_event
from pydiffeqflux.errors import (
    DenseOutputError,
    DtypeError,
    EventNotFoundError,
    GradientError,
    InvalidArgumentError,
    InvalidOptionError,
    InvalidStateError,
    InvalidTimesError,
    InvalidToleranceError,
    MaxStepsError,
    NonFiniteError,
    PyDiffEqFluxError,
    ScipySolverError,
    ShapeError,
    StepSizeRequiredError,
    UnknownNameError,
    UnsupportedError,
)

D = torch.float64
ADAPTIVE = ("dopri8", "dopri5", "tsit5", "bosh3", "fehlberg2", "adaptive_heun")
OURS = ("vern7", "vern9", "heun", "rosenbrock23", "rodas5p", "kencarp4", "kvaerno5", "qndf", "AutoTsit5(Rosenbrock23)")
EXPLICIT = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
IMPLICIT = (
    "implicit_euler",
    "implicit_midpoint",
    "trapezoid",
    "radauIIA3",
    "gl4",
    "radauIIA5",
    "gl6",
    "sdirk2",
    "trbdf2",
)
FIXED = EXPLICIT + IMPLICIT
#: Error on the test problem with steps of 1/16; adaptive methods are held to their tolerance.
ERRORS = {
    "euler": 0.1,
    "implicit_euler": 0.1,
    "heun3": 1e-3,
    "rk4": 1e-4,
    "explicit_adams": 1e-3,
    "implicit_adams": 1e-4,
}
#: Of order 2: many steps for little.
SLOW = ("heun", "adaptive_heun", "fehlberg2", "rosenbrock23")
ERRORS |= {"fixed_adams": 1e-4, "radauIIA3": 1e-4, "gl4": 1e-6, "radauIIA5": 1e-7, "gl6": 1e-8}


class Pendulum(nn.Module):
    """Driven and damped, with a parameter; counts its evaluations."""

    def __init__(self, dtype: torch.dtype = D):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(0.8, dtype=dtype))
        self.unused = nn.Linear(2, 1)
        self.nfe = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.nfe += 1
        return torch.stack([y[1], -self.k * torch.sin(y[0]) + 0.3 * torch.cos(3 * t)])


def start(dtype: torch.dtype = D) -> Tensor:
    return torch.tensor([1.0, 0.2], dtype=dtype)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=D)


@pytest.fixture(scope="module")
def exact() -> Tensor:
    problem = pdf.ODEProblem(Pendulum(), start(), (0.0, 2.0))
    with torch.no_grad():
        return pdf.solve(problem, "vern9", rtol=1e-13, atol=1e-13, saveat=torch.linspace(0, 2, 33, dtype=D)).ys


# -- solutions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*ADAPTIVE, *OURS, *FIXED, "scipy_solver"])
@pytest.mark.parametrize("backwards", [False, True])
def test_every_method_solves(method: str, backwards: bool, exact: Tensor) -> None:
    t = torch.linspace(0, 2, 33, dtype=D)
    y0, wanted = exact[0], exact
    if backwards:
        t, y0, wanted = t.flip(0), exact[-1], exact.flip(0)
    with torch.no_grad():
        ys = odeint(Pendulum(), y0, t, rtol=1e-5 if method in SLOW else 1e-6, atol=1e-6, method=method)
    assert ys.shape == (33, 2) and ys.dtype == D
    assert torch.equal(ys[0], y0)
    bound = ERRORS.get(method, 1e-2 if method in FIXED else 2e-3 if method in SLOW else 1e-4)
    assert float((ys - wanted).abs().max()) < bound


def test_the_default_is_dopri5_at_a_tight_tolerance(exact: Tensor) -> None:
    t = torch.linspace(0, 2, 33, dtype=D)
    ys = odeint(Pendulum(), start(), t)
    assert float((ys - exact).detach().abs().max()) < 1e-6
    assert torch.equal(ys, odeint(Pendulum(), start(), t, method="dopri5", rtol=1e-7, atol=1e-9))


def test_a_method_of_this_package_may_be_an_object(exact: Tensor) -> None:
    ys = odeint(Pendulum(), start(), times(0, 2), method=pdf.Vern7(), rtol=1e-10, atol=1e-10)
    assert float((ys[-1] - exact[-1]).abs().max()) < 1e-8


def test_rk4_by_name_is_the_three_eighths_rule_and_as_an_object_the_classical_one() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return -y

    seen: list[float] = []
    odeint(f, torch.ones(1, dtype=D), times(0, 3), method="rk4")
    assert seen == pytest.approx([0, 1, 2, 3])
    seen.clear()
    odeint(f, torch.ones(1, dtype=D), times(0, 3), method=pdf.RK4())
    assert seen == pytest.approx([0, 1.5, 1.5, 3])


@pytest.mark.parametrize("method", ["dopri5", "rk4", "gl4", "rodas5p", "scipy_solver"])
def test_a_single_time_is_the_initial_state(method: str) -> None:
    def never(t: Tensor, y: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    assert torch.equal(odeint(never, start(), times(3.0), method=method), start()[None])


def test_states_may_be_tuples_of_any_shapes() -> None:
    y0 = (torch.ones(2, 3, dtype=D), torch.tensor(2.0, dtype=D), torch.ones(1, dtype=D))
    f = lambda t, y: [-y[0], -2 * y[1].reshape(1), y[2] * t]  # noqa: E731  # a list, and another shape of one entry
    ys = odeint(f, y0, times(0, 0.5, 1))
    assert isinstance(ys, tuple) and [y.shape for y in ys] == [(3, 2, 3), (3,), (3, 1)]
    for y, factor in zip(ys, (math.exp(-1), 2 * math.exp(-2), math.exp(0.5)), strict=True):
        torch.testing.assert_close(y[-1], torch.full_like(y[-1], factor), rtol=1e-6, atol=1e-7)


def test_a_tuple_may_mix_complex_and_real_dtypes() -> None:
    y0 = (torch.ones(1, dtype=torch.complex128), torch.ones(2))
    ys = odeint(lambda t, y: (1j * y[0], -y[1]), y0, times(0, 1))
    assert [y.dtype for y in ys] == [torch.complex128, torch.float32]
    assert abs(complex(ys[0][-1]) - complex(math.cos(1), math.sin(1))) < 1e-6


def test_dicts_work_too() -> None:
    ys = odeint(lambda t, y: {"a": -y["a"]}, {"a": torch.ones(2)}, torch.tensor([0.0, 1.0]))
    assert ys["a"].shape == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, D, torch.complex64])
def test_the_derivative_is_brought_to_the_state_s_shape_and_dtype(dtype: torch.dtype) -> None:
    rates = torch.tensor([1.0], dtype=D)
    ys = odeint(lambda t, y: (-rates)[None], torch.ones(3, dtype=dtype), times(0, 1))
    assert ys.shape == (2, 3) and ys.dtype == dtype
    torch.testing.assert_close(ys[-1], torch.zeros(3, dtype=dtype), rtol=0, atol=1e-6)


def test_the_error_is_measured_in_a_mixed_norm_over_a_tuple() -> None:
    # A small tensor beside a large quiet one: a joint root mean square would not hear it.
    f = lambda t, y: (torch.cos(20 * t) * torch.ones(1, dtype=D), torch.zeros_like(y[1]))  # noqa: E731
    y0 = (torch.zeros(1, dtype=D), torch.zeros(1_000_000, dtype=D))
    with torch.no_grad():
        ys = odeint(f, y0, times(0, 1), rtol=1e-5, atol=1e-5)
    assert abs(float(ys[0][-1]) - math.sin(20) / 20) < 3e-5


def test_tolerances_may_differ_from_tensor_to_tensor(exact: Tensor) -> None:
    f = Pendulum()
    pair = lambda t, y: (f(t, y[0]), f(t, y[1]))  # noqa: E731
    counts = []
    for atol in ((1e-3, 1e-10), (1e-3, torch.full((2,), 1e-3)), 1e-3):
        f.nfe = 0
        ys = odeint(pair, (start(), start()), times(0, 2), rtol=(0.0, 0.0), atol=atol)
        counts.append(f.nfe)
    assert counts[0] > 2 * counts[1] == 2 * counts[2]
    per_entry = odeint(f, start(), times(0, 2), rtol=0.0, atol=times(1e-10, 1e-10))
    assert float((per_entry[-1] - exact[-1]).abs().max()) < 1e-8
    assert ys[0].shape == (2, 2)


# -- options ------------------------------------------------------------------------------------


def evaluations(method: str = "dopri5", y0: Tensor | None = None, **options: Any) -> int:
    f = Pendulum()
    odeint(f, start() if y0 is None else y0, times(0, 2), method=method, options=options)
    return f.nfe


def test_step_options_of_adaptive_methods() -> None:
    usual = evaluations()
    assert evaluations(max_step=0.01) >= 6 * 200
    assert evaluations(min_step=0.5) < usual / 3
    assert evaluations(first_step=1e-9) > usual
    assert evaluations(ifactor=1.0, first_step=0.02) >= 6 * 100
    assert evaluations(safety=0.3) > usual
    assert evaluations(dtype=torch.float32) == usual
    assert evaluations(norm=lambda e: e.abs().max() * 100) > usual


@pytest.mark.parametrize("first", [0.013, torch.tensor(0.013)])
def test_the_first_step_has_the_size_that_is_asked_for(first: Any) -> None:
    sizes: list[float] = []
    f = Callbacks(lambda t, y, dt: sizes.append(float(dt)))
    for t in (times(0, 1), times(1, 0)):
        sizes.clear()
        odeint(f, torch.ones(1), t, options={"first_step": first})
        assert sizes[0] == pytest.approx(0.013)


def test_max_num_steps_counts_from_one_output_time_to_the_next() -> None:
    t = torch.linspace(0, 2, 101, dtype=D)
    odeint(Pendulum(), start(), t, options={"max_num_steps": 15})
    with pytest.raises(AssertionError, match="max_num_steps") as caught:
        odeint(Pendulum(), start(), t[[0, -1]], options={"max_num_steps": 15})
    assert isinstance(caught.value, MaxStepsError)


@pytest.mark.parametrize("name", ["step_t", "jump_t"])
@pytest.mark.parametrize("backwards", [False, True])
def test_steps_end_at_jumps_and_see_each_side_from_its_own(name: str, backwards: bool) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        assert float(t) != 0.5
        seen.append(float(t))
        return torch.full_like(y, 1.0 if t < 0.5 else -2.0)

    seen: list[float] = []
    t = times(1, 0) if backwards else times(0, 1)
    ys = odeint(f, torch.zeros(1), t, options={name: torch.tensor([0.5])})
    assert float(ys[-1]) == pytest.approx(0.5 if backwards else -0.5, abs=1e-6)
    assert any(0.4999 < s < 0.5 for s in seen) and any(0.5 < s < 0.5001 for s in seen)


def test_fixed_steps_follow_their_size_or_grid_and_are_interpolated() -> None:
    f: Callable[[Tensor, Tensor], Tensor] = lambda t, y: y  # noqa: E731
    y0, t = torch.ones(1, dtype=D), times(0, 0.25, 1)
    linear = odeint(f, y0, t, method="euler", options={"step_size": 0.5})
    assert linear.flatten().tolist() == pytest.approx([1, 1.25, 2.25])
    cubic = odeint(f, y0, t, method="euler", options={"step_size": 0.5, "interp": "cubic"})
    # Hermite's values of theta = 1/2 between (1, slope 1) and (1.5, slope 1.5).
    assert float(cubic[1]) == pytest.approx(1.25 + (1 - 1.5) * 0.5 / 8)
    # The last step is shorter where the size does not go into the span.
    assert float(odeint(f, y0, t, method="euler", options={"step_size": 0.4})[-1]) == pytest.approx(1.4 * 1.4 * 1.2)
    grid = odeint(f, y0, t, method="euler", options={"grid_constructor": lambda f, y, t: times(0, 0.25, 0.75, 1)})
    assert grid.flatten().tolist() == pytest.approx([1, 1.25, 1.25 * 1.5 * 1.25])


@pytest.mark.parametrize("span", [0.3, 0.6, 0.7, 1.1])
def test_rounding_adds_no_step_of_no_size(span: float) -> None:
    for dtype in (torch.float32, D):
        sizes: list[float] = []
        f = Callbacks(lambda t, y, dt: sizes.append(float(dt)))
        odeint(
            f,
            torch.ones(1, dtype=dtype),
            torch.tensor([0, span], dtype=dtype),
            method="euler",
            options={"step_size": 0.1},
        )
        assert sizes == pytest.approx([0.1] * round(span / 0.1), rel=1e-4)


def test_grids_are_checked() -> None:
    def solve(*grid: float) -> None:
        options = {"grid_constructor": lambda f, y, t: times(*grid)}
        odeint(lambda t, y: y, torch.ones(1), times(0, 1), method="euler", options=options)

    for grid in ((0, 0.5), (0.1, 1), (0, 0.6, 0.5, 1), (0,)):
        with pytest.raises(AssertionError) as caught:
            solve(*grid)
        assert isinstance(caught.value, InvalidTimesError)


@pytest.mark.parametrize("method", FIXED)
def test_perturb_keeps_off_the_ends_of_the_steps(method: str) -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t.detach()))
        return -y

    seen: list[float] = []
    for perturb in (True, False):
        seen.clear()
        odeint(
            f, torch.ones(2), torch.tensor([0.0, 1.0]), method=method, options={"step_size": 0.5, "perturb": perturb}
        )
        assert ({0.0, 0.5} <= set(seen)) is not perturb
        assert ({0.0, 0.5} & set(seen) == set()) is perturb


def test_adams_options() -> None:
    t = torch.linspace(0, 2, 33, dtype=D)
    with pytest.warns(UserWarning, match="reduces to `rk4`"):
        low = odeint(Pendulum(), start(), t, method="implicit_adams", options={"max_order": 3})
    torch.testing.assert_close(low, odeint(Pendulum(), start(), t, method="rk4"))
    with pytest.raises(AssertionError, match="at most 12"):
        odeint(Pendulum(), start(), t, method="explicit_adams", options={"max_order": 13})
    with pytest.warns(UserWarning, match="did not converge"):
        odeint(lambda t, y: -40 * y, start(), t, method="implicit_adams", options={"max_iters": 1})


def test_unknown_options_warn_and_known_ones_do_not() -> None:
    for method, options in (
        ("dopri5", {"step_size": 0.1}),
        ("rk4", {"max_num_steps": 3}),
        ("scipy_solver", {"perturb": 1}),
    ):
        with pytest.warns(UserWarning, match=f"Unexpected arguments .*{next(iter(options))}") as caught:
            odeint(Pendulum(), start(), times(0, 1), method=method, options=options)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odeint(Pendulum(), start(), times(0, 1), method="rk4", options={"norm": torch.linalg.vector_norm})


class Callbacks:
    """``-y``, with callbacks that are told of every step."""

    def __init__(self, step: Callable[..., Any], accept: Any = None, reject: Any = None):
        self.callback_step = step
        if accept is not None:
            self.callback_accept_step, self.callback_reject_step = accept, reject

    def __call__(self, t: Tensor, y: Any) -> Any:
        return tuple(-x * torch.sin(9 * t) for x in y) if isinstance(y, tuple) else -y * torch.sin(9 * t)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_callbacks_get_the_time_the_state_and_the_positive_step(backwards: bool, structured: bool) -> None:
    steps, accepted, rejected = [], [], []
    f = Callbacks(*(lambda t, y, dt, to=to: to.append((t, y, dt)) for to in (steps, accepted, rejected)))
    y0: Any = (torch.ones(2), torch.ones(1)) if structured else torch.ones(2)
    t = torch.tensor([2.0, 1.0] if backwards else [1.0, 2.0])
    odeint(f, y0, t, options={"first_step": 0.9})
    assert len(steps) == len(accepted) + len(rejected) and len(rejected) >= 1
    for when, state, size in steps:
        assert 1.0 <= float(when) <= 2.0 and float(size) > 0 and size.shape == ()
        assert (state[1] if structured else state).shape == ((1,) if structured else (2,))
    assert float(steps[0][0]) == float(t[0])


def test_callbacks_that_are_never_called_warn() -> None:
    f = Callbacks(print, print, print)
    for method, name in (("rk4", "callback_accept_step"), ("scipy_solver", "callback_step")):
        with pytest.warns(UserWarning, match=f"does not support callbacks .*{name}"):
            f.callback_step = lambda *args: None
            odeint(f, torch.ones(1), torch.tensor([0.0, 1.0]), method=method)


# -- gradients through the steps ----------------------------------------------------------------


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, "rodas5p", "kvaerno5"])
def test_gradients_of_state_parameter_and_times(method: str) -> None:
    def final(y0: Tensor, k: Tensor, t: Tensor) -> Tensor:
        f = lambda t, y: torch.stack([y[1], -k * torch.sin(y[0]) + 0.3 * torch.cos(3 * t)])  # noqa: E731
        return odeint(f, y0, t, method=method, rtol=1e-7, atol=1e-7)

    # Step sizes are constants to autograd; numerically they move with the tolerance.
    inputs = (start().requires_grad_(), times(0.8)[0].requires_grad_(), times(0, 0.3, 0.45, 0.9).requires_grad_())
    assert torch.autograd.gradcheck(final, inputs, atol=1e-6 if method in FIXED else 2e-5)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_gradients_of_times_that_are_interpolated_to(interp: str) -> None:
    def final(t: Tensor) -> Tensor:
        f = lambda t, y: -y * torch.cos(t)  # noqa: E731
        return odeint(f, start(), t, method="rk4", options={"step_size": 0.25, "interp": interp})

    assert torch.autograd.gradcheck(final, (times(0.1, 0.3, 0.47, 0.9).requires_grad_(),))


def test_second_derivatives() -> None:
    def final(y0: Tensor, method: str) -> Tensor:
        return odeint(lambda t, y: -(y**3), y0, times(0, 0.5), method=method, options=options)[-1]

    for method in ("rk4", "gl4", "explicit_adams"):
        options = {"step_size": 0.125}
        assert torch.autograd.gradgradcheck(lambda y, m=method: final(y, m), (start().requires_grad_(),))


def test_inside_torch_func() -> None:
    f = lambda t, y: -(y**2)  # noqa: E731
    solve = lambda y: odeint(f, y, times(0, 1), method="rk4", options={"step_size": 0.25})[-1].sum()  # noqa: E731
    y0 = torch.rand(4, 2, dtype=D)
    slopes = torch.func.vmap(torch.func.grad(solve))(y0)
    y = y0.clone().requires_grad_()
    sum(solve(row) for row in y).backward()
    torch.testing.assert_close(slopes, y.grad)
    with pytest.raises(UnsupportedError, match="odeint works there"):
        torch.func.grad(lambda y: odeint_adjoint(f, y, times(0, 1))[-1].sum())(y0[0])


# -- the adjoint --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*ADAPTIVE, "vern7", "rodas5p", "kvaerno5", *FIXED, "scipy_solver"])
def test_the_adjoint_agrees_with_the_derivative_of_the_steps(method: str) -> None:
    found = []
    options = {"step_size": 0.02, "interp": "cubic"} if method in FIXED else None
    for solve, chosen in ((odeint, "vern9"), (odeint_adjoint, method)):
        f, y0, t = Pendulum(), start().requires_grad_(), times(0, 0.3, 0.62, 1).requires_grad_()
        tol = 1e-10 if chosen in ("vern9", "vern7", "dopri8") else 1e-4 if chosen in SLOW else 1e-6
        ys = solve(f, y0, t, rtol=tol, atol=tol, method=chosen, options=None if solve is odeint else options)
        (ys * torch.arange(8.0, dtype=D).reshape(4, 2)).sum().backward()
        found.append((y0.grad, t.grad, f.k.grad))
    close = (
        0.5
        if method in ("euler", "implicit_euler")
        else 1e-2
        if method in (*FIXED, "adaptive_heun", "fehlberg2")
        else 1e-3
    )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=0.05, atol=close)
    assert float(f.unused.weight.grad.abs().max()) == 0


def test_the_adjoint_converges_to_the_gradient() -> None:
    grads = []
    for solve, tol in ((odeint, 1e-12), (odeint_adjoint, 1e-12)):
        f, y0, t = Pendulum(), start().requires_grad_(), times(0.2, 0.3, 1).requires_grad_()
        solve(f, y0, t, rtol=tol, atol=tol, method="dopri8")[1:].pow(3).sum().backward()
        grads.append((y0.grad, t.grad, f.k.grad))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9)


def test_the_adjoint_finds_parameters_wherever_they_are() -> None:
    raw = torch.tensor(0.3, dtype=D, requires_grad=True)
    plain = torch.tensor([1.0, 2.0], dtype=D, requires_grad=True)
    layer = nn.Linear(2, 2).to(D)
    module = Pendulum()
    module.context = torch.exp(raw)  # a computed tensor, kept as a plain attribute

    def closure(t: Tensor, y: Tensor) -> Tensor:
        return module(t, y) * module.context + plain * torch.tanh(layer(y))

    wanted = (raw, plain, *layer.parameters(), module.k)
    found = []
    for solve in (odeint, odeint_adjoint):
        module.context = torch.exp(raw)
        ys = solve(closure, start(), times(0, 1), rtol=1e-10, atol=1e-10)
        found.append(torch.autograd.grad(ys[-1].sum(), wanted))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)


def test_adjoint_params_says_which_gradients_are_wanted() -> None:
    f, y0 = Pendulum(), start().requires_grad_()
    odeint_adjoint(f, y0, times(0, 1), adjoint_params=())[-1].sum().backward()
    assert f.k.grad is None and y0.grad is not None
    frozen = Pendulum()
    frozen.k.requires_grad_(False)
    norm = lambda state: state[1].abs().max()  # noqa: E731
    with pytest.warns(UserWarning, match="without requiring gradient"):
        odeint_adjoint(frozen, y0, times(0, 1), adjoint_options={"norm": norm})


def test_adjoint_options_norms_and_tolerances() -> None:
    def backward(**kwargs: Any) -> int:
        f = Pendulum()
        ys = odeint_adjoint(f, start(), times(0, 2), **kwargs)
        f.nfe = 0
        ys[-1].sum().backward()
        return f.nfe

    usual = backward()
    assert backward(adjoint_rtol=1e-3, adjoint_atol=1e-3) < usual / 2
    assert backward(adjoint_options={"norm": "seminorm"}) <= usual
    assert backward(adjoint_method="vern9", adjoint_options={}) < usual
    assert backward(adjoint_options={"max_step": 0.02}) > 600
    assert backward(options={"max_step": 0.02}) > 600
    seen = []

    def norm(state: tuple[Tensor, ...]) -> Tensor:
        seen.append([x.shape for x in state])
        return state[1].abs().max()

    backward(adjoint_options={"norm": norm})
    assert seen[0] == [(), (2,), (2,), (), (1, 2), (1,)]
    with pytest.raises(ValueError, match="adjoint_options"):
        odeint_adjoint(Pendulum(), start(), times(0, 1), adjoint_method="rk4", options={"first_step": 0.1})


def test_the_users_adjoint_norm_sees_a_tuple_state_taken_apart() -> None:
    seen = []

    def norm(state: tuple[Tensor, ...]) -> Tensor:
        seen.append([x.shape for x in state])
        return torch.stack([x.abs().max() for x in state]).max()

    k = torch.ones(3, requires_grad=True)
    y0 = (torch.ones(1), torch.ones(2, 2))
    ys = odeint_adjoint(
        lambda t, y: (-y[0], -y[1] * k.sum()), y0, times(0, 1), adjoint_params=(k,), adjoint_options={"norm": norm}
    )
    ys[1][-1].sum().backward()
    assert seen[0] == [(), (1,), (2, 2), (1,), (2, 2), (3,)]


def test_adjoint_callbacks_follow_the_backward_solve() -> None:
    f, seen = Pendulum(), []
    f.callback_step_adjoint = lambda t, state, dt: seen.append((float(t), len(state)))
    ys = odeint_adjoint(f, start(), times(0, 1), method="rk4", options={"step_size": 0.25})
    assert not seen
    ys[-1].sum().backward()
    assert [t for t, _ in seen] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert seen[0][1] == 3 + len(list(f.parameters()))


def test_the_adjoint_carries_on_with_its_step_size() -> None:
    counts = []
    for t in (times(0, 2), torch.linspace(0, 2, 21, dtype=D)):
        f = Pendulum()
        ys = odeint_adjoint(f, start(), t, rtol=1e-6, atol=1e-6)
        f.nfe = 0
        ys[-1].sum().backward()
        counts.append(f.nfe)
    assert counts[1] < counts[0] + 20 * 7  # one step an interval, and its first slope


def test_the_adjoint_has_no_second_derivative_and_says_so() -> None:
    y0 = start().requires_grad_()
    (slope,) = torch.autograd.grad(odeint_adjoint(Pendulum(), y0, times(0, 1))[-1].sum(), y0, create_graph=True)
    with pytest.raises(RuntimeError):
        slope.sum().backward()


def test_without_gradients_nothing_is_recorded() -> None:
    with torch.no_grad():
        assert not odeint_adjoint(Pendulum(), start(), times(0, 1)).requires_grad


def test_an_empty_parameter_gets_an_empty_gradient() -> None:
    empty, k = torch.empty(0, requires_grad=True), torch.ones(1, requires_grad=True)
    ys = odeint_adjoint(lambda t, y: -k * y, torch.ones(1), torch.tensor([0.0, 1.0]), adjoint_params=(empty, k))
    ys[-1].sum().backward()
    assert empty.grad.shape == (0,) and float(k.grad) == pytest.approx(-math.exp(-1), rel=1e-4)


# -- events -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dopri5", "vern9", "rodas5p", "rk4", "gl4"])
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_event_times_have_the_exact_gradients(method: str, solve: Callable[..., Any]) -> None:
    # Height h, thrown up with speed v from time t0, until it is at the level c:
    # T = t0 + (v + sqrt(v^2 + 2 g (h - c))) / g, and the speed there is -sqrt(v^2 + 2 g (h - c)).
    h, v, g, c, t0 = (torch.tensor(x, dtype=D, requires_grad=True) for x in (2.0, 3.0, 9.81, 0.5, 0.25))
    options = {"step_size": 0.125, "interp": "cubic"} if method in FIXED else {}

    def fall(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -g * torch.ones_like(y[1])])

    when, ys = odeint_event(
        fall,
        torch.stack([h, v]),
        t0,
        event_fn=lambda t, y: y[0] - c,
        odeint_interface=solve,
        method=method,
        options=options,
    )
    root = torch.sqrt(v**2 + 2 * g * (h - c))
    exact = t0 + (v + root) / g
    assert when.shape == () and ys.shape == (2, 2)
    torch.testing.assert_close(when, exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ys[-1], torch.stack([c, -root]), rtol=1e-7, atol=1e-7)
    inputs = (h, v, g, c, t0)
    for found, wanted in ((when, exact), (ys[-1, 1], -root)):
        one = torch.autograd.grad(found, inputs, retain_graph=True, allow_unused=True)
        other = torch.autograd.grad(wanted, inputs, retain_graph=True, allow_unused=True)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(
                torch.zeros(()).to(D) if a is None else a,
                torch.zeros(()).to(D) if b is None else b,
                rtol=1e-6,
                atol=1e-6,
            )


def test_odeint_itself_holds_the_event_time_constant() -> None:
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    when, ys = odeint(lambda t, y: -y, y0, times(0, 1), event_fn=lambda t, y: y - 0.5)
    assert not when.requires_grad and float(when) == pytest.approx(math.log(2), abs=1e-7)
    (slope,) = torch.autograd.grad(ys[-1].sum(), y0)
    assert float(slope) == pytest.approx(0.5, abs=1e-6)  # not 0, which it is along the event


def test_events_backwards_with_tuples_and_several_conditions() -> None:
    y0 = (torch.tensor([1.0, 2.0], dtype=D, requires_grad=True), torch.zeros((), dtype=D))
    event = lambda t, y: torch.stack([y[0][0] - 9.0, t + 0.5])  # noqa: E731
    when, ys = odeint_event(lambda t, y: (y[0], t.reshape(())), y0, 1.0, event_fn=event, reverse_time=True)
    assert float(when) == pytest.approx(-0.5, abs=1e-8)
    assert [y.shape for y in ys] == [(2, 2), (2,)]
    assert ys[0][-1].tolist() == pytest.approx([math.exp(-1.5), 2 * math.exp(-1.5)], abs=1e-6)


def test_an_event_at_the_start_is_found_at_once() -> None:
    for method, options in (("dopri5", {}), ("rk4", {"step_size": 0.1})):
        when, ys = odeint(
            lambda t, y: y, torch.ones(1), times(2, 3), event_fn=lambda t, y: y - 1, method=method, options=options
        )
        assert float(when) == 2.0 and torch.equal(ys[0], ys[1])


def test_events_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydiffeqflux.torchdiffeq_api.grid.MAX_EVENT_STEPS", 50)
    still, never = (lambda t, y: 0 * y), (lambda t, y: y + 1)
    with pytest.raises(AssertionError, match="never came to zero") as caught:
        odeint(still, torch.ones(1, dtype=D), times(0, 1), event_fn=never)
    assert isinstance(caught.value, EventNotFoundError)
    with pytest.raises(RuntimeError, match="50 steps"):
        odeint(still, torch.ones(1), times(0, 1), event_fn=never, method="euler", options={"step_size": 1e-3})
    with pytest.raises(AssertionError, match="step_size") as size:
        odeint(still, torch.ones(1), times(0, 1), event_fn=never, method="euler")
    assert isinstance(size.value, StepSizeRequiredError)
    with pytest.raises(ValueError, match="two times"):
        odeint(still, torch.ones(1), times(0, 1, 2), event_fn=never)
    with pytest.raises(UnsupportedError, match="scipy_solver"):
        odeint(still, torch.ones(1), times(0, 1), event_fn=never, method="scipy_solver")
    with pytest.raises(NonFiniteError, match="NaN"):
        odeint(
            lambda t, y: -torch.ones_like(y), torch.ones(1), times(0, 1), event_fn=lambda t, y: torch.sqrt(y) + 0.1,
            method="euler", options={"step_size": 0.3},
        )  # fmt: skip


# -- dense output -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dopri5", "vern7", "kvaerno5", "rk4", "gl6"])
@pytest.mark.parametrize("backwards", [False, True])
def test_dense_output_is_a_differentiable_function_of_time(method: str, backwards: bool, exact: Tensor) -> None:
    f = Pendulum()
    y0 = (exact[-1] if backwards else exact[0]).clone().requires_grad_()
    ends = (2.0, 0.0) if backwards else (torch.tensor(0.0), torch.tensor(2.0))
    options = {"step_size": 0.05} if method in FIXED else {}
    solution = odeint_dense(f, y0, *ends, method=method, options=options)
    ys = solution(torch.linspace(0, 2, 33, dtype=D))
    torch.testing.assert_close(ys, exact, rtol=1e-4, atol=1e-5)
    t = torch.tensor(0.77, dtype=D, requires_grad=True)
    y = solution(t)
    (slope,) = torch.autograd.grad(y[0], t, retain_graph=True)
    assert float(slope) == pytest.approx(float(y[1]), abs=1e-3)
    y.sum().backward()
    assert y0.grad is not None and f.k.grad is not None


def test_dense_output_outside_and_of_tuples() -> None:
    solution = odeint_dense(lambda t, y: (-y[0], y[1]), (torch.ones(2), torch.ones(1)), 0.0, 1.0)
    assert [y.shape for y in solution(0.5)] == [(2,), (1,)]
    with pytest.raises(AssertionError) as caught:
        solution(1.5)
    assert isinstance(caught.value, DenseOutputError)
    with pytest.raises(UnsupportedError):
        odeint_dense(lambda t, y: -y, torch.ones(1), 0.0, 1.0, method="scipy_solver")


# -- SciPy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"])
def test_scipy_s_solvers(solver: str, exact: Tensor) -> None:
    y0 = start().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ys = odeint(
            Pendulum(), y0, torch.linspace(0, 2, 33, dtype=D), method="scipy_solver", options={"solver": solver}
        )
    assert not ys.requires_grad and ys.shape == (33, 2)
    assert float((ys - exact).abs().max()) < 1e-4


def test_scipy_giving_up_is_an_error_but_for_a_min_step() -> None:
    with pytest.raises(ScipySolverError, match="RK45 stopped"):
        odeint(
            lambda t, y: y**2, torch.ones(1, dtype=D), times(0, 2), method="scipy_solver", options={"solver": "RK45"}
        )
    f = Pendulum()
    with pytest.warns(UserWarning, match="min_step"):
        ys = odeint(f, start(), times(0, 1, 8), method="scipy_solver", options={"min_step": 1.0})
    assert f.nfe < 30 and torch.equal(ys[0], start()) and bool(ys[-1].isnan().all())
    with pytest.warns(UserWarning, match="has no min_step"):
        odeint(f, start(), times(0, 1), method="scipy_solver", options={"solver": "RK45", "min_step": 1.0})


# -- bad input ----------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[PyDiffEqFluxError], type[Exception], str]] = {
    "t is a list": ({"t": [0.0, 1.0]}, InvalidTimesError, AssertionError, "torch.Tensor"),
    "t is integer": ({"t": torch.tensor([0, 1])}, DtypeError, TypeError, "floating"),
    "t is a matrix": ({"t": torch.ones(1, 2)}, InvalidTimesError, AssertionError, "one dimensional"),
    "t is empty": ({"t": torch.zeros(0)}, InvalidTimesError, AssertionError, "empty"),
    "t repeats": ({"t": times(0, 1, 1)}, InvalidTimesError, AssertionError, "strictly"),
    "t turns": ({"t": times(0, 1, 0.5)}, InvalidTimesError, AssertionError, "strictly"),
    "t is NaN": ({"t": times(0, math.nan)}, InvalidTimesError, AssertionError, "finite"),
    "y0 is a number": ({"y0": 1.0}, InvalidStateError, AssertionError, "y0"),
    "y0 is integer": ({"y0": torch.ones(2, dtype=torch.int64)}, InvalidStateError, TypeError, "int64"),
    "func is no function": ({"func": 3}, InvalidArgumentError, ValueError, "callable"),
    "func returns too much": ({"func": lambda t, y: torch.ones(3)}, ShapeError, ValueError, r"\(3,\)"),
    "func returns complex": ({"func": lambda t, y: 1j * y}, DtypeError, TypeError, "complex"),
    "func returns a number": ({"func": lambda t, y: 1.0}, ShapeError, ValueError, "float"),
    "rtol has a gradient": (
        {"rtol": torch.ones((), requires_grad=True)},
        InvalidToleranceError,
        AssertionError,
        "gradient",
    ),
    "atol is negative": ({"atol": -1.0}, InvalidToleranceError, AssertionError, "negative"),
    "rtol has another shape": ({"rtol": torch.ones(3)}, InvalidToleranceError, AssertionError, "fit"),
    "no such method": ({"method": "dopri6"}, UnknownNameError, ValueError, "dopri"),
    "no such interpolation": (
        {"method": "rk4", "options": {"interp": "cubics"}},
        UnknownNameError,
        ValueError,
        "cubic",
    ),
    "two grids": (
        {"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": print}},
        InvalidOptionError,
        ValueError,
        "mutually exclusive",
    ),
    "a negative step": ({"method": "rk4", "options": {"step_size": -0.1}}, InvalidOptionError, ValueError, "step_size"),
    "a jump twice": (
        {"options": {"jump_t": times(0.5), "step_t": times(0.5)}},
        InvalidOptionError,
        ValueError,
        "repeated",
    ),
    "a shrinking factor": ({"options": {"ifactor": 0.5}}, InvalidOptionError, ValueError, "ifactor"),
    "an inverted range": ({"options": {"min_step": 2, "max_step": 1}}, InvalidOptionError, ValueError, "min_step"),
    "a dtype that is none": ({"options": {"dtype": "float32"}}, InvalidOptionError, ValueError, "dtype"),
    "NaN from func": ({"func": lambda t, y: y * math.nan}, NonFiniteError, AssertionError, "NaN"),
    "a blow-up": ({"func": lambda t, y: y**2, "t": times(0, 3)}, PyDiffEqFluxError, AssertionError, "t=1"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_bad_input_has_an_error_of_its_own(case: str, solve: Callable[..., Any]) -> None:
    changed, ours, builtin, message = BAD[case]
    arguments = {"func": lambda t, y: -y, "y0": torch.ones(2, dtype=D), "t": times(0, 1)} | changed
    with pytest.raises(builtin, match=message) as caught:
        solve(arguments.pop("func"), arguments.pop("y0"), arguments.pop("t"), **arguments)
    assert isinstance(caught.value, ours)


def test_bad_input_of_tuples() -> None:
    y0 = (torch.ones(2), torch.ones(3))
    with pytest.raises(AssertionError, match="same length"):
        odeint(lambda t, y: y, y0, times(0, 1), rtol=(1e-3,))
    with pytest.raises(ShapeError, match="2 tensors"):
        odeint(lambda t, y: (y[0],), y0, times(0, 1))
    with pytest.raises(ShapeError, match=r"\[1\]"):
        odeint(lambda t, y: (y[0], y[0]), y0, times(0, 1))


def test_third_derivatives_of_implicit_methods_are_refused() -> None:
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    slope = odeint(lambda t, y: -(y**2), y0, times(0, 1), method="trapezoid")[-1].sum()
    for _ in range(2):
        (slope,) = torch.autograd.grad(slope, y0, create_graph=True)
    with pytest.raises(GradientError):
        torch.autograd.grad(slope, y0)


# -- beside torchdiffeq -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "explicit_adams", "implicit_adams"])
@pytest.mark.parametrize("options", [{}, {"step_size": 0.05}, {"step_size": 0.06, "interp": "cubic"}])
def test_fixed_steps_give_torchdiffeq_s_numbers(method: str, options: dict[str, Any]) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    if "adams" in method:
        # On a last step of another size torchdiffeq uses the weights of an even grid, and loses its order.
        options = {name: 0.05 if name == "step_size" else value for name, value in options.items()} | {"max_order": 5}
    results = []
    for solve in (odeint, torchdiffeq.odeint):
        f, y0, t = Pendulum(), start().requires_grad_(), torch.linspace(0, 2, 11, dtype=D, requires_grad=True)
        ys = solve(f, y0, t, method=method, options=options)
        ys.square().sum().backward()
        results.append((ys.detach(), y0.grad, f.k.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
