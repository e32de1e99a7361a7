"""``solve`` and ``Solution``: what goes in, what comes out, and that gradients reach everything."""

from __future__ import annotations

import itertools
import logging
import math
from collections import namedtuple
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    BackendUnavailableError,
    DenseOutputError,
    InvalidTimesError,
    NonFiniteError,
    UnknownOptionError,
)

matplotlib.use("Agg")

F32, F64 = torch.float32, torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
START = torch.tensor([1.0, 2.0], dtype=F64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def growth_in_time(t: Tensor, y: Tensor) -> Tensor:
    """y' = 2 t y, so y(t) = y0 exp(t^2 - t0^2)."""
    return 2 * t * y


def problem(func: Any = decay, y0: Any = None, span: Any = (0.0, 1.0), **options: Any) -> pdf.ODEProblem:
    return pdf.ODEProblem(func, START if y0 is None else y0, span, **options)


def close(a: Any, b: Any, tol: float = 1e-8) -> None:
    a, b = (torch.as_tensor(x, dtype=F64) for x in (a, b))
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


# -- saving -------------------------------------------------------------------------------------

FORMS = {
    "tensor": torch.tensor([0.0, 0.25, 1.0], dtype=F64),
    "float32 tensor": torch.tensor([0.0, 0.25, 1.0]),
    "list": [0.0, 0.25, 1.0],
    "tuple": (0, 0.25, 1),
    "array": np.array([0.0, 0.25, 1.0]),
    "tensors": [torch.tensor(0.0), torch.tensor(0.25), 1.0],
}


@pytest.mark.parametrize("saveat", FORMS.values(), ids=FORMS.keys())
def test_saveat_takes_every_kind_of_sequence(saveat: Any) -> None:
    sol = pdf.solve(problem(), saveat=saveat, **TIGHT)
    assert sol.ts.tolist() == [0.0, 0.25, 1.0]
    assert sol.ys.shape == (3, 2) and sol.ys.dtype == F64
    close(sol.ys[:, 0], (-sol.ts).exp())


def test_a_single_number_is_a_spacing() -> None:
    assert pdf.solve(problem(), saveat=0.25).ts.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    close(pdf.solve(problem(), saveat=0.3).ts, [0.0, 0.3, 0.6, 0.9, 1.0])  # and the end
    assert pdf.solve(problem(), saveat=0.1).ts.shape == (11,)  # 0.1 * 10 is not quite 1
    assert pdf.solve(problem(), saveat=5).ts.tolist() == [0.0, 1.0]
    assert pdf.solve(problem(span=(1.0, 0.0)), saveat=0.5).ts.tolist() == [1.0, 0.5, 0.0]
    assert pdf.solve(problem(), saveat=np.float32(0.5)).ts.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0])
def test_a_single_time(time: float) -> None:
    sol = pdf.solve(problem(), saveat=[time], **TIGHT)
    assert sol.ts.tolist() == [time] and sol.ys.shape == (1, 2)
    close(sol.ys[0, 0], math.exp(-time))


@pytest.mark.parametrize(
    ("saveat", "span"),
    [
        (torch.linspace(0.0, 0.3, 4), (0.0, 0.3)),  # float32's 0.3 is 0.30000001
        (np.linspace(0.0, 0.3, 4, dtype=np.float32), (0.0, 0.3)),
        ([0.1, 0.7], torch.tensor([0.1, 0.7])),  # float32's 0.1 is 0.100000001
        ([torch.tensor(0.1), torch.tensor(0.7)], (0.1, 0.7)),
        (torch.tensor([0.7, 0.1]), (0.7, 0.1)),
    ],
)
def test_rounding_at_the_ends_of_the_span_is_forgiven(saveat: Any, span: Any) -> None:
    sol = pdf.solve(problem(span=span), saveat=saveat, **TIGHT)
    assert sol.success and len(sol.ys) == len(saveat)
    close(sol.ys[-1], START * math.exp(float(span[0]) - float(span[1])))


def test_rounding_beyond_the_dtype_is_not() -> None:
    with pytest.raises(InvalidTimesError, match=r"saveat\[1\]=1\.00000001 lies outside"):
        pdf.solve(problem(), saveat=[0.0, 1.00000001])


def test_without_saveat_every_step_is_kept() -> None:
    sol = pdf.solve(problem())
    assert len(sol.ts) == sol.stats.naccept + 1 == len(sol.ys)
    assert sol.ts[0] == 0.0 and sol.ts[-1] == 1.0 and (sol.ts.diff() > 0).all()
    end = pdf.solve(problem(), save_everystep=False)
    assert end.ts.tolist() == [1.0] and torch.equal(end.ys[0], sol.ys[-1])


def test_saving_does_not_change_the_steps() -> None:
    plain, saved = pdf.solve(problem()), pdf.solve(problem(), saveat=torch.linspace(0, 1, 50))
    assert torch.equal(plain.ys[-1], saved.ys[-1]) and plain.stats.nf == saved.stats.nf


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3)])
def test_states_of_any_shape(shape: tuple[int, ...]) -> None:
    y0 = torch.rand(shape, dtype=F64) + 1
    sol = pdf.solve(problem(y0=y0), saveat=[0.0, 0.5, 1.0], **TIGHT)
    assert sol.ys.shape == (3, *shape)
    close(sol.ys[-1], y0 / math.e)


# -- dense output -------------------------------------------------------------------------------


@pytest.mark.parametrize("saveat", [None, [0.3, 0.9]])
def test_dense_output(saveat: Any) -> None:
    sol = pdf.solve(problem(), saveat=saveat, **TIGHT)
    assert sol(0.37).shape == (2,) and sol([0.1, 0.2]).shape == (2, 2) and sol(torch.tensor(0.2)).shape == (2,)
    times = torch.linspace(0, 1, 23, dtype=F64)
    close(sol(times)[:, 0], (-times).exp())
    close(sol(np.array([0.5]))[0, 1], 2 * math.exp(-0.5))
    close(sol(np.float32(0.5)), sol(0.5))


def test_dense_output_is_the_saved_solution() -> None:
    times = torch.linspace(0.05, 0.95, 7, dtype=F64)
    dense, saved = pdf.solve(problem())(times), pdf.solve(problem(), saveat=times).ys
    torch.testing.assert_close(dense, saved, rtol=1e-14, atol=1e-14)


def test_dense_output_is_differentiable_in_time_and_in_the_problem() -> None:
    y0 = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    sol = pdf.solve(problem(y0=y0), **TIGHT)
    t = torch.tensor([0.2, 0.7], dtype=F64, requires_grad=True)
    states = sol(t)
    by_t, by_y0 = torch.autograd.grad(states.sum(), (t, y0))
    close(by_t, -3 * (-t.detach()).exp(), 1e-7)
    close(by_y0, (-t.detach()).exp().sum().expand(2))
    single = torch.tensor(0.4, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(sol(single)[0], single)
    close(slope, -math.exp(-0.4), 1e-7)


def test_dense_output_says_where_it_ends() -> None:
    sol = pdf.solve(problem())
    for outside in (-0.1, 1.1, [0.5, 1.5]):
        with pytest.raises(DenseOutputError, match=r"outside the solved span \[0\.0, 1\.0\]"):
            sol(outside)
    for nonsense in ("now", None, [], torch.zeros(2, 2), True, [0.1, "b"], 0.5j, float("nan")):
        with pytest.raises(InvalidTimesError):
            sol(nonsense)
    with pytest.raises(DenseOutputError, match="dense=True"):
        pdf.solve(problem(), dense=False)(0.5)


def test_dense_output_backwards_in_time() -> None:
    sol = pdf.solve(problem(span=(1.0, 0.0)), **TIGHT)
    close(sol(0.25)[0], math.exp(0.75))


# -- what is known about the solve --------------------------------------------------------------


def test_stats_and_status() -> None:
    calls = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -100 * torch.sin(20 * t) * y

    sol = pdf.solve(problem(counted), "tsit5", rtol=1e-6)
    stats = sol.stats
    assert sol.status is pdf.Status.SUCCESS and sol.success and sol.status.value == "success"
    assert stats.nf == calls and stats.naccept > 5 and stats.nreject > 0
    # First same as last: six evaluations a step, one to begin with, one for the first step size.
    assert stats.nf == 6 * (stats.naccept + stats.nreject) + 2
    assert 0 < stats.time < 60 and stats.njac == 0
    assert (stats.backend, stats.method) == ("torch", "tsit5")
    assert (stats.sensealg, bool(stats.reason)) == ("DiscreteAdjoint", True)


def test_stats_say_what_was_picked_for_the_gradient() -> None:
    with torch.no_grad():
        stats = pdf.solve(problem()).stats
    assert (stats.sensealg, stats.reason) == ("none", "gradients are disabled")
    stats = pdf.solve(problem(), sensealg="gauss").stats
    assert (stats.sensealg, stats.reason) == ("GaussAdjoint", "asked for")
    stats = pdf.solve(problem(y0=torch.ones(1 << 19)), saveat=[1.0], dense=False).stats
    assert stats.sensealg == "DiscreteAdjoint" and "memory" in stats.reason


def test_an_implicit_method_counts_its_jacobians() -> None:
    assert pdf.solve(problem(), "rosenbrock23").stats.njac > 0


@pytest.mark.parametrize("method", ["tsit5", pdf.Tsit5(), pdf.Tsit5, "Tsit5", "Tsit5()", None])
def test_methods_by_name_and_by_object(method: Any) -> None:
    sol = pdf.solve(problem(), method)
    assert sol.stats.method == "tsit5" and torch.equal(sol.ys, pdf.solve(problem(), "tsit5").ys)


def test_backends() -> None:
    assert pdf.solve(problem(), backend="auto").stats.backend == "torch"
    assert pdf.solve(problem(), backend="torch").stats.backend == "torch"
    assert pdf.solve(problem(), backend="eager").stats.backend == "torch"
    assert issubclass(BackendUnavailableError, ImportError)  # what it says: test_julia_setup.py


def test_the_log_names_backend_and_method(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pydiffeqflux"):
        pdf.solve(problem(), "AutoTsit5(Rosenbrock23)")
    assert [r.getMessage() for r in caplog.records] == ["backend torch, method AutoTsit5(Rosenbrock23)"]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    pdf.solve(problem(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "solve" in shown.err and "100.0%" in shown.err
    pdf.solve(problem())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("option", "nearest"), [("reltol", "rtol"), ("abstol", "atol"), ("save_at", "saveat"), ("dtmax", "dt_max")]
)
def test_unknown_options_are_refused(option: str, nearest: str) -> None:
    with pytest.raises(UnknownOptionError, match=rf"solve\(\) takes no argument '{option}'.*'{nearest}'") as caught:
        pdf.solve(problem(), **{option: 1})
    assert isinstance(caught.value, TypeError) and caught.value.nearest == nearest


# -- kinds of states ----------------------------------------------------------------------------


def test_backwards_in_time() -> None:
    sol = pdf.solve(problem(growth_in_time, span=(1.0, -0.5)), saveat=[1.0, 0.0, -0.5], **TIGHT)
    close(sol.ys[:, 0], (sol.ts**2 - 1).exp())
    steps = pdf.solve(problem(growth_in_time, span=(1.0, -0.5)))
    assert (steps.ts.diff() < 0).all() and steps.ts[-1] == -0.5


@pytest.mark.parametrize(
    ("dtype", "rtol", "error"), [(F32, 1e-5, 1e-5), (F64, 1e-11, 1e-10), (torch.float16, 1e-2, 2e-2)]
)
def test_dtypes(dtype: torch.dtype, rtol: float, error: float) -> None:
    seen = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add((t.dtype, t.shape, y.dtype))
        return 2 * t * y

    sol = pdf.solve(problem(f, torch.ones(3, dtype=dtype)), saveat=[0.5, 1.0], rtol=rtol, atol=rtol)
    assert sol.ys.dtype == dtype and seen == {(dtype, torch.Size([]), dtype)}
    close(sol.ys[-1].double(), torch.full((3,), math.e, dtype=F64), error)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_states(dtype: torch.dtype) -> None:
    y0 = torch.tensor([1.0, 1j], dtype=dtype, requires_grad=True)
    sol = pdf.solve(problem(lambda t, y: 1j * y, y0, (0.0, math.pi)), rtol=1e-6, atol=1e-6)
    assert sol.ys.dtype == dtype and sol.ts.dtype == F64
    torch.testing.assert_close(sol.ys[-1], -y0, rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(sol.ys[-1].real.sum(), y0)
    torch.testing.assert_close(grad, torch.full_like(y0, -1.0), rtol=1e-4, atol=1e-4)


def test_the_clock_of_a_complex_state_is_real() -> None:
    seen = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add(t.dtype)
        return 1j * t * y

    pdf.solve(problem(f, torch.ones(1, dtype=torch.complex64)))
    assert seen == {F32}


def test_nested_states() -> None:
    y0 = {"a": torch.ones(2, dtype=F64), "b": (torch.ones(1, 3, dtype=F64), [torch.ones((), dtype=F64)])}

    def f(t: Tensor, y: Any) -> Any:
        return {"a": -y["a"], "b": (2 * t * y["b"][0], [y["a"].sum()])}

    sol = pdf.solve(problem(f, y0), saveat=[0.0, 1.0], **TIGHT)
    assert sol.ys["a"].shape == (2, 2) and sol.ys["b"][0].shape == (2, 1, 3) and sol.ys["b"][1][0].shape == (2,)
    close(sol.ys["a"][-1], [math.exp(-1)] * 2)
    close(sol.ys["b"][0][-1], [[math.e] * 3])
    close(sol.ys["b"][1][0][-1], 1 + 2 * (1 - math.exp(-1)))
    dense = sol(0.5)
    assert isinstance(dense["b"], tuple) and isinstance(dense["b"][1], list)
    close(dense["a"], [math.exp(-0.5)] * 2)


def test_real_and_complex_leaves_together() -> None:
    y0 = (torch.ones(2, dtype=F32), torch.ones(1, dtype=torch.complex64), torch.ones(1, dtype=F64))

    def f(t: Tensor, y: Any) -> Any:
        return (-y[0], 1j * y[1].conj().conj(), y[2])

    sol = pdf.solve(problem(f, y0, (0.0, math.pi)), saveat=[math.pi], rtol=1e-7, atol=1e-9)
    assert [leaf.dtype for leaf in sol.ys] == [F32, torch.complex64, F64]
    close(sol.ys[0][0], [math.exp(-math.pi)] * 2, 1e-5)
    torch.testing.assert_close(sol.ys[1][0], torch.tensor([-1 + 0j]), rtol=1e-5, atol=1e-5)
    close(sol.ys[2][0], [math.exp(math.pi)], 1e-6)


def test_named_tuples_stay_named() -> None:
    point = namedtuple("point", ["q", "p"])
    y0 = point(torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64))
    sol = pdf.solve(problem(lambda t, y: point(y.p, -y.q), y0, (0.0, math.pi)), **TIGHT)
    assert type(sol.ys).__name__ == "point"
    close(sol.ys.q[-1], [-1.0])


# -- step sizes ---------------------------------------------------------------------------------


def steps_of(sol: pdf.Solution) -> Tensor:
    return sol.ts.diff().abs()


def test_tensor_tolerances_act_by_entry() -> None:
    f = lambda t, y: torch.stack([torch.cos(t), 50 * torch.cos(50 * t)])  # noqa: E731
    y0 = torch.zeros(2, dtype=F64)
    loose = torch.tensor([1e-8, 1e3], dtype=F64)  # the fast second entry hardly counts
    both = pdf.solve(problem(f, y0), rtol=0.0, atol=1e-8)
    first = pdf.solve(problem(f, y0), rtol=0.0, atol=loose)
    assert first.stats.naccept < both.stats.naccept / 4
    close(first.ys[-1, 0], math.sin(1), 1e-6)
    same = pdf.solve(problem(f, y0), rtol=torch.zeros(2), atol=torch.full((1,), 1e-8, dtype=F64))
    assert torch.equal(same.ts, both.ts)


def test_an_absolute_tolerance_of_zero() -> None:
    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-y[0], 0 * y[1], y[0]])

    for method in ("tsit5", "rosenbrock23"):
        sol = pdf.solve(problem(f, torch.tensor([1.0, 0.0, 0.0], dtype=F64)), method, rtol=1e-6, atol=0.0)
        close(sol.ys[-1], [math.exp(-1), 0.0, 1 - math.exp(-1)], 1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fixed_steps(sign: float) -> None:
    sol = pdf.solve(problem(span=(0.0, sign)), "rk4", dt=0.25)
    close(sol.ts, [0.0, 0.25 * sign, 0.5 * sign, 0.75 * sign, sign])
    uneven = pdf.solve(problem(span=(0.0, sign)), "rk4", dt=0.4, dense=False)
    close(uneven.ts, [0.0, 0.4 * sign, 0.8 * sign, sign], 1e-12)
    assert (uneven.stats.naccept, uneven.stats.nreject, uneven.stats.nf) == (3, 0, 12)


def test_fixed_steps_along_the_save_times() -> None:
    times = [0.0, 0.1, 0.4, 1.0]
    sol = pdf.solve(problem(), "euler", saveat=times)
    expected = [1.0]
    for a, b in itertools.pairwise(times):
        expected.append(expected[-1] * (1 - (b - a)))
    close(sol.ys[:, 0], expected, 1e-14)
    assert sol.stats.naccept == 3


def test_fixed_steps_with_save_times_between_them() -> None:
    sol = pdf.solve(problem(), "rk4", dt=0.1, saveat=[0.05, 0.5, 1.0])
    assert sol.stats.naccept == 10
    close(sol.ys[:, 0], (-sol.ts).exp(), 1e-5)


def test_the_first_step_can_be_given() -> None:
    sol = pdf.solve(problem(), dt=1e-3)
    close(steps_of(sol)[0], 1e-3)
    assert sol.stats.nf == 6 * sol.stats.naccept + 1  # nothing was spent on guessing it


def test_the_largest_step() -> None:
    sol = pdf.solve(problem(), dt_max=0.03)
    assert steps_of(sol).max() <= 0.03 * (1 + 1e-9)
    assert len(sol.ts) > 33


def test_the_smallest_step() -> None:
    def rough(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(1000 * t) * torch.ones_like(y)

    free = pdf.solve(problem(rough), rtol=1e-9, atol=1e-9)
    held = pdf.solve(problem(rough), rtol=1e-9, atol=1e-9, dt_min=0.01)
    assert steps_of(free).min() < 0.01 <= steps_of(held)[:-1].min() * (1 + 1e-9)
    assert held.success and held.stats.nreject == 0


def test_steps_end_at_tstops() -> None:
    def jump(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.3, 1.0, -5.0) * torch.ones_like(y)

    free = pdf.solve(problem(jump), rtol=1e-8, atol=1e-10)
    for stops in ([0.3], torch.tensor([0.3, 7.0], dtype=F64), (0.3, -1.0)):  # those outside do nothing
        sol = pdf.solve(problem(jump), rtol=1e-8, atol=1e-10, tstops=stops)
        assert 0.3 in sol.ts.tolist() and sol.ts[-1] == 1.0
        assert sol.stats.nreject == 0 < free.stats.nreject
        close(sol.ys[-1], START + 0.3 - 5 * 0.7, 1e-12)
    fixed = pdf.solve(problem(jump), "rk4", dt=0.2, tstops=[0.3])
    close(fixed.ys[-1], START + 0.3 - 5 * 0.7, 1e-12)


@pytest.mark.parametrize("method", ["tsit5", "rodas5p"])
@pytest.mark.parametrize("sensealg", [None, pdf.DiscreteAdjoint(checkpoints=2)])
def test_tstops_stay_where_they_are_when_the_start_moves(method: str, sensealg: Any) -> None:
    """Nothing happens before 0.5, so that it does not matter when that begins."""
    t0 = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(1, dtype=torch.float64)
    jump = pdf.ODEProblem(lambda t, y: torch.where(t > 0.5, 1.0, 0.0) - 0 * t * y, y0, (t0, 1.0))
    sol = pdf.solve(jump, method, tstops=[0.5], saveat=[0.8, 1.0], backend="eager", sensealg=sensealg)
    assert torch.allclose(sol.ys[:, 0], torch.tensor([0.3, 0.5], dtype=torch.float64))
    for row in sol.ys:
        (slope,) = torch.autograd.grad(row.sum(), t0, retain_graph=True)
        assert abs(float(slope)) < 1e-12



CONTROLLERS = {
    "I": pdf.IController(),
    "PI": pdf.PIController(),
    "PID": pdf.PIDController(pcoeff=0.3, icoeff=0.4, dcoeff=0.1),
    "limited": pdf.PIDController(factor_max=1.5),
}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_controllers(name: str) -> None:
    def oscillator(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], -y[0] * (1 + 30 * t)])

    spec = problem(oscillator, torch.tensor([1.0, 0.0], dtype=F64), (0.0, 3.0))
    sol = pdf.solve(spec, rtol=1e-7, atol=1e-9, controller=CONTROLLERS[name])
    reference = pdf.solve(spec, "vern9", rtol=1e-12, atol=1e-13).ys[-1]
    close(sol.ys[-1], reference, 2e-5)
    assert sol.stats.nreject < sol.stats.naccept / 4
    if name == "limited":
        steps = steps_of(sol)
        assert (steps[1:-1] / steps[:-2]).max() <= 1.5 + 1e-9
    if name == "I":
        assert torch.equal(sol.ts, pdf.solve(spec, rtol=1e-7, atol=1e-9).ts)  # the default
    else:
        assert not torch.equal(sol.ts, pdf.solve(spec, rtol=1e-7, atol=1e-9).ts)


def test_a_norm_of_ones_own() -> None:
    seen = []

    def largest(error: Tensor) -> Tensor:
        seen.append(error.shape)
        return error.abs().max()

    y0 = {"a": torch.tensor([1.0], dtype=F64), "b": torch.zeros(3, dtype=F64)}
    f = lambda t, y: {"a": -20 * y["a"], "b": 0 * y["b"]}  # noqa: E731
    strict, mean = pdf.solve(problem(f, y0), norm=largest), pdf.solve(problem(f, y0))
    assert set(seen) == {torch.Size([4])}
    assert strict.stats.naccept > mean.stats.naccept


def test_inference_mode() -> None:
    with torch.inference_mode():
        sol = pdf.solve(problem(), **TIGHT)
    close(sol.ys[-1, 0], math.exp(-1))
    assert sol.stats.sensealg == "none"


@pytest.mark.parametrize("options", [{"method": "tsit5"}, {"method": "rk4", "dt": 0.1}])
def test_vmap_over_initial_states(options: Any) -> None:
    def end(y0: Tensor) -> Tensor:
        return pdf.solve(problem(y0=y0), **options).ys[-1]

    y0 = torch.rand(3, 2, dtype=F64)
    close(torch.vmap(end)(y0), y0 / math.e, 1e-3)
    with pytest.raises(NonFiniteError):
        torch.vmap(end)(torch.tensor([[1.0, 1.0], [1.0, math.nan]], dtype=F64))


# -- gradients ----------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(-0.5, dtype=F64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * y


SENSEALGS = ["DiscreteAdjoint", "GaussAdjoint", "InterpolatingAdjoint"]


@pytest.mark.parametrize("sensealg", SENSEALGS)
def test_gradients_reach_module_closure_and_argument_tensors(sensealg: str) -> None:
    module = Scaled()
    closed = torch.tensor(0.2, dtype=F64, requires_grad=True)
    raw = torch.tensor(0.1, dtype=F64, requires_grad=True)
    derived = raw.exp()  # a plain tensor with a history, not a leaf
    y0 = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)

    def f(t: Tensor, y: Tensor, extra: Tensor = derived) -> Tensor:
        return module(t, y) + closed * y + 0.1 * extra * y

    ys = pdf.solve(problem(f, y0), sensealg=sensealg, **TIGHT).ys
    inputs = (module.rate, closed, raw, y0)
    by_rate, by_closed, by_raw, by_y0 = torch.autograd.grad(ys[-1].sum(), inputs)
    factor = math.exp(-0.5 + 0.2 + 0.1 * math.exp(0.1))  # y(1) = y0 * factor
    close(by_rate, 3 * factor, 1e-7)
    close(by_closed, 3 * factor, 1e-7)
    close(by_raw, 3 * factor * 0.1 * math.exp(0.1), 1e-7)
    close(by_y0, [factor, factor], 1e-7)


@pytest.mark.parametrize("sensealg", SENSEALGS)
@pytest.mark.parametrize("method", ["tsit5", "dopri8", "rk4"])
def test_gradients_reach_the_times(method: str, sensealg: str) -> None:
    """y = y0 exp(t^2 - t0^2): a saved value moves by 2 t y with its time, and by -2 t0 y with the start."""
    t0, t1, middle = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (0.3, 1.1, 0.8))
    spec = problem(growth_in_time, torch.ones(1, dtype=F64), (t0, t1))
    dt = {"dt": 0.02} if method == "rk4" else {}
    sol = pdf.solve(spec, method, saveat=[0.5, middle, t1], sensealg=sensealg, **dt, **TIGHT)
    tol = 1e-6
    for index, (time, own) in enumerate([(0.5, None), (0.8, middle), (1.1, t1)]):
        value = math.exp(time**2 - 0.09)
        wanted = [t0] + ([own] if own is not None else [])
        grads = torch.autograd.grad(sol.ys[index].sum(), wanted, retain_graph=True)
        close(sol.ys[index], [value], tol)
        close(grads[0], -0.6 * value, tol)
        if own is not None:
            close(grads[1], 2 * time * value, tol)


def test_gradients_reach_a_tensor_of_times() -> None:
    span = torch.tensor([0.3, 1.1], dtype=F64, requires_grad=True)
    times = torch.tensor([0.4, 0.9], dtype=F64, requires_grad=True)
    ys = pdf.solve(problem(growth_in_time, torch.ones(1, dtype=F64), span), saveat=times, **TIGHT).ys
    by_span, by_times = torch.autograd.grad(ys.sum(), (span, times))
    values = (times.detach() ** 2 - 0.09).exp()
    close(by_times, 2 * times.detach() * values, 1e-7)
    close(by_span, [float(-0.6 * values.sum()), 0.0], 1e-7)


def test_the_end_time_moves_the_final_state() -> None:
    t1 = torch.tensor(1.0, dtype=F64, requires_grad=True)
    for options in ({}, {"save_everystep": False}):
        sol = pdf.solve(problem(span=(0.0, t1)), **TIGHT, **options)
        (grad,) = torch.autograd.grad(sol.ys[-1, 0], t1)
        close(grad, -math.exp(-1), 1e-7)


def test_the_gradient_is_that_of_finite_differences() -> None:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    def loss(y0: Tensor, *weights: Tensor) -> Tensor:
        parameters = dict(zip(dict(net.named_parameters()), weights, strict=True))
        f = lambda t, y: torch.func.functional_call(net, parameters, (y,))  # noqa: E731
        return pdf.solve(problem(f, y0), saveat=[0.5, 1.0], dt=0.1, dt_max=0.1, dt_min=0.0999).ys

    y0 = torch.rand(2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (y0, *(p.detach().clone().requires_grad_() for p in net.parameters())))


# -- plot ---------------------------------------------------------------------------------------


def lines_of(ax: Any) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    return [tuple(np.asarray(c, dtype=float) for c in line.get_data()) for line in ax.get_lines()]


def test_plot_draws_the_dense_curve_and_the_saved_points() -> None:
    sol = pdf.solve(problem(), saveat=[0.0, 0.5, 1.0], **TIGHT)
    ax = sol.plot(points=50)
    (x1, y1), (xm, ym), (_, y2), _ = lines_of(ax)
    assert len(x1) == 50 and x1[0] == 0 and x1[-1] == 1
    np.testing.assert_allclose(y1, np.exp(-x1), rtol=1e-8)
    np.testing.assert_allclose(y2, 2 * np.exp(-x1), rtol=1e-8)
    np.testing.assert_allclose(xm, [0, 0.5, 1])
    np.testing.assert_allclose(ym, np.exp(-xm), rtol=1e-8)
    assert ax.get_xlabel() == "t" and [t.get_text() for t in ax.get_legend().get_texts()] == ["$y_{0}$", "$y_{1}$"]


def test_plot_takes_axes_components_and_labels() -> None:
    import matplotlib.pyplot as plt

    _, mine = plt.subplots()
    sol = pdf.solve(problem(), dense=False, saveat=[0.0, 0.5, 1.0])
    ax = sol.plot(mine, components=[-1], labels=["prey"])
    assert ax is mine
    (x, y), _ = lines_of(ax)  # without dense output straight lines between the saved points
    np.testing.assert_allclose(x, [0, 0.5, 1])
    np.testing.assert_allclose(y, sol.ys[:, 1])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["prey"]
    plt.close("all")


def test_plot_of_structures_and_complex_states() -> None:
    import matplotlib.pyplot as plt

    y0 = (torch.ones(1, dtype=torch.complex128), torch.ones(2, dtype=F64))
    sol = pdf.solve(problem(lambda t, y: (1j * y[0], -y[1]), y0, (1.0, 0.0)), saveat=0.5, **TIGHT)
    ax = sol.plot(points=20)
    curves = lines_of(ax)[::2]
    assert len(curves) == 4  # real part, imaginary part, two decays
    t = curves[0][0]
    for (_, y), exact in zip(curves, (np.cos(t - 1), np.sin(t - 1), np.exp(1 - t), np.exp(1 - t)), strict=True):
        np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-9)
    plt.close("all")


def test_plot_of_a_solution_with_gradients_and_of_many_components() -> None:
    import matplotlib.pyplot as plt

    sol = pdf.solve(problem(y0=torch.ones(12, dtype=F64, requires_grad=True)), saveat=torch.linspace(0, 1, 100))
    assert len(lines_of(sol.plot())) == 10  # the first ten, and no dots on a hundred points
    plt.close("all")
