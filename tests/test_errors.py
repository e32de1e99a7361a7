"""Bad input: each kind has its own exception, whose message names the argument, the value and the way out."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux import errors
from pydiffeqflux.errors import (
    ConvergenceError,
    DenseOutputError,
    DtypeError,
    GradientError,
    InvalidArgumentError,
    InvalidStateError,
    InvalidTimesError,
    InvalidToleranceError,
    MaxStepsError,
    NonFiniteError,
    PyDiffEqFluxError,
    ShapeError,
    SignatureError,
    SolveError,
    StepSizeRequiredError,
    StepUnderflowError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)

F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def problem(func: Any = decay, y0: Any = None, span: Any = (0.0, 1.0), **options: Any) -> pdf.ODEProblem:
    return pdf.ODEProblem(func, torch.ones(2, dtype=F64) if y0 is None else y0, span, **options)


def solve(func: Any = decay, y0: Any = None, span: Any = (0.0, 1.0), **options: Any) -> pdf.Solution:
    return pdf.solve(problem(func, y0, span), **options)


def returning(value: Any) -> Callable[[Tensor, Any], Any]:
    return lambda t, y: value


def hidden(*args: Any) -> Any:
    """A signature that does not say."""


@dataclass
class Bad:
    """One bad input. ``says`` are pieces of the message: the argument, its value, the way out."""

    call: Callable[[], Any]
    error: type[PyDiffEqFluxError]
    built_in: type[Exception]
    says: tuple[str, ...]


NET = nn.Sequential(nn.Linear(2, 2))
PAIR = (torch.ones(2), torch.ones(1))

PROBLEMS = {
    "func": Bad(lambda: problem(5), InvalidArgumentError, ValueError, ("func=5", "func(t, y)")),
    "y0 a number": Bad(lambda: problem(y0=1.0), InvalidStateError, TypeError, ("y0 is a float", "torch.as_tensor")),
    "y0 of numbers": Bad(lambda: problem(y0=(PAIR[0], 1.0)), InvalidStateError, TypeError, ("y0[1] is a float",)),
    "y0 integers": Bad(
        lambda: problem(y0={"a": torch.ones(2, dtype=torch.int64)}),
        InvalidStateError,
        TypeError,
        ("y0['a'] has dtype torch.int64", "y0['a'].double()"),
    ),
    "y0 empty": Bad(lambda: problem(y0=torch.ones(0)), InvalidStateError, AssertionError, ("y0 is empty", "(0,)")),
    "y0 of nothing": Bad(lambda: problem(y0=()), InvalidStateError, TypeError, ("y0 holds no tensor",)),
    "y0 on two devices": Bad(
        lambda: problem(y0=(PAIR[0], PAIR[1].to("meta"))), DtypeError, TypeError, ("y0", "cpu, meta", "move them")
    ),
    "rows that differ": Bad(
        lambda: problem(y0=PAIR, batched=True), ShapeError, ValueError, ("y0", "[(2,), (1,)]", "same first dimension")
    ),
    "span of one": Bad(lambda: problem(span=5), InvalidTimesError, AssertionError, ("t_span=5", "(t0, t1)")),
    "span of three": Bad(lambda: problem(span=(0, 1, 2)), InvalidTimesError, ValueError, ("(0, 1, 2)", "saveat")),
    "span empty": Bad(
        lambda: problem(span=(1, 1)), InvalidTimesError, ValueError, ("t_span=(1.0, 1.0)", "must differ")
    ),
    "span infinite": Bad(
        lambda: problem(span=(0, INF)), InvalidTimesError, ValueError, ("t_span[1]=inf", "not finite")
    ),
    "span of text": Bad(lambda: problem(span="01"), InvalidTimesError, ValueError, ("t_span[0]='0'", "real number")),
    "span of vectors": Bad(
        lambda: problem(span=(torch.zeros(2), 1.0)), InvalidTimesError, ValueError, ("t_span[0]", "(2,)", "one real")
    ),
    "span complex": Bad(
        lambda: problem(span=(0.0, torch.tensor(1j))), InvalidTimesError, ValueError, ("t_span[1]", "complex64")
    ),
}

TIMES = {
    "empty": Bad(lambda: solve(saveat=[]), InvalidTimesError, ValueError, ("saveat is empty", "None")),
    "empty tensor": Bad(lambda: solve(saveat=torch.zeros(0)), InvalidTimesError, ValueError, ("saveat is empty",)),
    "decreasing": Bad(
        lambda: solve(saveat=[0.5, 0.2]),
        InvalidTimesError,
        AssertionError,
        ("saveat must be strictly increasing", "saveat[0]=0.5", "saveat[1]=0.2"),
    ),
    "increasing": Bad(
        lambda: solve(span=(1.0, 0.0), saveat=[0.2, 0.5]), InvalidTimesError, ValueError, ("strictly decreasing",)
    ),
    "twice": Bad(lambda: solve(saveat=torch.tensor([0.2, 0.2])), InvalidTimesError, ValueError, ("saveat[1]=0.2",)),
    "outside": Bad(lambda: solve(saveat=[0.5, 2.0]), InvalidTimesError, ValueError, ("saveat[1]=2.0", "widen t_span")),
    "before": Bad(lambda: solve(saveat=[-0.5]), InvalidTimesError, ValueError, ("saveat[0]=-0.5", "(0.0, 1.0)")),
    "nan": Bad(lambda: solve(saveat=[0.1, NAN]), InvalidTimesError, ValueError, ("saveat[1]=nan", "finite")),
    "nested": Bad(lambda: solve(saveat=[[0.1]]), InvalidTimesError, ValueError, ("saveat[0]=[0.1]",)),
    "matrix": Bad(lambda: solve(saveat=torch.ones(2, 2)), InvalidTimesError, ValueError, ("saveat", "(2, 2)")),
    "0-dim": Bad(lambda: solve(saveat=torch.tensor(0.5)), InvalidTimesError, ValueError, ("saveat", "one-dimensional")),
    "text": Bad(lambda: solve(saveat="0.5"), InvalidTimesError, ValueError, ("saveat='0.5'", "sequence")),
    "truth": Bad(lambda: solve(saveat=True), InvalidTimesError, ValueError, ("saveat=True", "sequence")),
    "spacing zero": Bad(lambda: solve(saveat=0), InvalidTimesError, ValueError, ("saveat=0.0", "positive")),
    "spacing negative": Bad(lambda: solve(saveat=-0.1), InvalidTimesError, ValueError, ("saveat=-0.1", "positive")),
    "spacing nan": Bad(lambda: solve(saveat=NAN), InvalidTimesError, ValueError, ("saveat=nan", "finite")),
    "tstops one": Bad(lambda: solve(tstops=0.5), InvalidTimesError, ValueError, ("tstops=0.5", "[0.5]")),
    "tstops nan": Bad(lambda: solve(tstops=[NAN]), InvalidTimesError, ValueError, ("tstops[0]=nan", "finite")),
    "tstops text": Bad(lambda: solve(tstops=["a"]), InvalidTimesError, ValueError, ("tstops[0]='a'",)),
    "doses one": Bad(lambda: pdf.PresetTimeCallback(0.5, decay), InvalidTimesError, ValueError, ("times=0.5", "[0.5]")),
    "doses nan": Bad(lambda: pdf.PresetTimeCallback([NAN], decay), InvalidTimesError, ValueError, ("times[0]=nan",)),
    "sol(t) of nothing": Bad(lambda: solve()([]), InvalidTimesError, ValueError, ("no times",)),
    "sol(t) outside": Bad(lambda: solve()(2.0), DenseOutputError, ValueError, ("t=2.0", "[0.0, 1.0]", "solve further")),
    "sol(t) without": Bad(lambda: solve(dense=False)(0.5), DenseOutputError, ValueError, ("dense=True", "saveat")),
}

OPTIONS = {
    "problem": Bad(lambda: pdf.solve(decay), InvalidArgumentError, ValueError, ("problem", "function", "ODEProblem(")),
    "rtol negative": Bad(lambda: solve(rtol=-1), InvalidToleranceError, ValueError, ("rtol=-1", ">= 0")),
    "rtol text": Bad(lambda: solve(rtol="1e-3"), InvalidToleranceError, ValueError, ("rtol='1e-3'", "number")),
    "atol nan": Bad(lambda: solve(atol=NAN), InvalidToleranceError, AssertionError, ("atol=nan", "finite")),
    "atol truth": Bad(lambda: solve(atol=True), InvalidToleranceError, ValueError, ("atol=True",)),
    "atol entries": Bad(
        lambda: solve(atol=torch.tensor([1.0, -1.0])), InvalidToleranceError, ValueError, ("atol=[1.0, -1.0]", ">= 0")
    ),
    "rtol integers": Bad(
        lambda: solve(rtol=torch.tensor([1, 1])), InvalidToleranceError, ValueError, ("rtol", "int64", "rtol.double()")
    ),
    "rtol complex": Bad(lambda: solve(rtol=torch.tensor(1j)), InvalidToleranceError, ValueError, ("complex64",)),
    "rtol shape": Bad(
        lambda: solve(rtol=torch.ones(3)), InvalidToleranceError, ValueError, ("rtol", "(3,)", "(2,)", "broadcast")
    ),
    "rtol too many": Bad(
        lambda: solve(rtol=torch.ones(3, 2)), InvalidToleranceError, ValueError, ("rtol", "(3, 2)", "broadcast")
    ),
    "rtol with gradient": Bad(
        lambda: solve(rtol=torch.tensor(1e-3, requires_grad=True)),
        InvalidToleranceError,
        ValueError,
        ("rtol", "detach"),
    ),
    "no tolerance": Bad(
        lambda: solve(rtol=0.0, atol=0.0), InvalidToleranceError, ValueError, ("rtol=0.0", "atol=0.0", "positive")
    ),
    "no tolerance of one": Bad(
        lambda: solve(rtol=0.0, atol=torch.tensor([1.0, 0.0])), InvalidToleranceError, ValueError, ("both zero",)
    ),
    "max_steps zero": Bad(lambda: solve(max_steps=0), InvalidArgumentError, ValueError, ("max_steps=0", "positive")),
    "max_steps half": Bad(lambda: solve(max_steps=1.5), InvalidArgumentError, ValueError, ("max_steps=1.5", "integer")),
    "dt zero": Bad(lambda: solve(dt=0.0), InvalidArgumentError, ValueError, ("dt=0.0", "positive")),
    "dt negative": Bad(lambda: solve(dt=-0.1), InvalidArgumentError, ValueError, ("dt=-0.1", "t_span gives its sign")),
    "dt text": Bad(lambda: solve(dt="a"), InvalidArgumentError, ValueError, ("dt='a'",)),
    "dt_min text": Bad(lambda: solve(dt_min="a"), InvalidArgumentError, ValueError, ("dt_min='a'", "number")),
    "dt_min negative": Bad(lambda: solve(dt_min=-1), InvalidArgumentError, ValueError, ("dt_min=-1", "0 <= dt_min")),
    "dt_max nan": Bad(lambda: solve(dt_max=NAN), InvalidArgumentError, ValueError, ("dt_max=nan", "dt_min < dt_max")),
    "dt_min above": Bad(
        lambda: solve(dt_min=1, dt_max=0.5), InvalidArgumentError, ValueError, ("dt_min=1", "dt_max=0.5")
    ),
    "controller": Bad(
        lambda: solve(controller="pi"), InvalidArgumentError, ValueError, ("controller='pi'", "PIController()")
    ),
    "safety": Bad(lambda: pdf.PIDController(safety=0), InvalidArgumentError, ValueError, ("safety=0", "(0, 1]")),
    "factor": Bad(
        lambda: pdf.PIDController(factor_min=2.0), InvalidArgumentError, ValueError, ("factor_min=2.0", "< 1")
    ),
    "icoeff": Bad(lambda: pdf.PIDController(icoeff=0.0), InvalidArgumentError, ValueError, ("icoeff=0.0", "positive")),
    "pcoeff nan": Bad(
        lambda: pdf.PIDController(pcoeff=NAN), InvalidArgumentError, ValueError, ("pcoeff=nan", "number")
    ),
    "norm": Bad(lambda: solve(norm=2), InvalidArgumentError, ValueError, ("norm=2", "function")),
    "event": Bad(lambda: solve(event=5), InvalidArgumentError, ValueError, ("condition=5", "condition(t, y)")),
    "direction": Bad(
        lambda: pdf.Event(decay, direction=2), InvalidArgumentError, ValueError, ("direction=2", "-1, 0 or 1")
    ),
    "interp_points": Bad(
        lambda: pdf.Event(decay, interp_points=-1), InvalidArgumentError, ValueError, ("interp_points=-1", ">= 0")
    ),
    "event's affect": Bad(
        lambda: pdf.Event(decay, affect=3),
        InvalidArgumentError,
        ValueError,
        ("affect=3", "affect(t, y)"),
    ),
    "dose's affect": Bad(
        lambda: pdf.PresetTimeCallback([0.5], 3),
        InvalidArgumentError,
        ValueError,
        ("affect=3", "affect(t, y)"),
    ),
    "callbacks": Bad(
        lambda: solve(callbacks=decay), InvalidArgumentError, ValueError, ("callbacks", "function", "event")
    ),
    "no step size": Bad(
        lambda: solve(method="euler"), StepSizeRequiredError, ValueError, ("method=euler", "dt", "saveat")
    ),
    "per_sample": Bad(
        lambda: solve(per_sample=True), UnsupportedError, NotImplementedError, ("per_sample=True", "batched=True")
    ),
    "checkpoints": Bad(
        lambda: pdf.DiscreteAdjoint(checkpoints=0), InvalidArgumentError, ValueError, ("checkpoints=0", "'sqrt'")
    ),
    "adjoint's rtol": Bad(lambda: pdf.GaussAdjoint(rtol=-1), InvalidToleranceError, ValueError, ("rtol=-1", ">= 0")),
    "quadrature's": Bad(lambda: pdf.QuadratureAdjoint(abstol=NAN), InvalidToleranceError, ValueError, ("abstol=nan",)),
    "stiff twice": Bad(
        lambda: pdf.AutoTsit5("euler"), InvalidArgumentError, ValueError, ("tsit5 and euler", "an implicit one")
    ),
    "plot's components": Bad(
        lambda: solve().plot(components=[2]), InvalidArgumentError, ValueError, ("components=[2]", "2 components")
    ),
    "plot's labels": Bad(
        lambda: solve().plot(labels=["a"]), InvalidArgumentError, ValueError, ("labels=['a']", "2 comp")
    ),
}

NAMES = {
    "method": Bad(lambda: solve(method="tsit"), UnknownNameError, ValueError, ("method='tsit'", "'tsit5'?")),
    "method's case": Bad(lambda: solve(method="Rodas5"), UnknownNameError, ValueError, ("'Rodas5'", "'rodas5p'?")),
    "method far off": Bad(
        lambda: solve(method="xyz"), UnknownNameError, ValueError, ("method='xyz'", "Known: ", "dopri5")
    ),
    "method a number": Bad(lambda: solve(method=5), UnknownNameError, ValueError, ("method=5", "Known: ")),
    "stiff of two": Bad(
        lambda: solve(method="AutoTsit5(rosenbrok23)"),
        UnknownNameError,
        ValueError,
        ("'rosenbrok23'", "'rosenbrock23'?"),
    ),
    "adjoint's method": Bad(
        lambda: pdf.GaussAdjoint(method="vern"), UnknownNameError, ValueError, ("method='vern'", "'vern")
    ),
    "sensealg": Bad(
        lambda: solve(sensealg="gaus"), UnknownNameError, ValueError, ("sensealg='gaus'", "'GaussAdjoint'?")
    ),
    "sensealg's kind": Bad(lambda: solve(sensealg=5), UnknownNameError, ValueError, ("sensealg=5", "Known: ")),
    "backend": Bad(lambda: solve(backend="tocrh"), UnknownNameError, ValueError, ("backend='tocrh'", "'torch'?")),
    "option": Bad(lambda: solve(reltol=1e-3), UnknownOptionError, TypeError, ("solve()", "'reltol'", "'rtol'?")),
    "layer's option": Bad(
        lambda: pdf.NeuralODE(NET, (0.0, 1.0), maxsteps=5),
        UnknownOptionError,
        TypeError,
        ("NeuralODE()", "'max_steps'?"),
    ),
    "layer's method": Bad(
        lambda: pdf.NeuralODE(NET, (0, 1), "rk5"), UnknownNameError, ValueError, ("'rk5'", "'rk45'?")
    ),
    "layer's sensealg": Bad(
        lambda: pdf.NeuralODE(NET, (0, 1), sensealg="backsolv"), UnknownNameError, ValueError, ("'BacksolveAdjoint'?",)
    ),
    "layer's model": Bad(lambda: pdf.NeuralODE(5, (0, 1)), InvalidArgumentError, ValueError, ("model=5", "nn.Module")),
    "layer's span": Bad(lambda: pdf.NeuralODE(NET, 1.0), InvalidTimesError, ValueError, ("t_span=1.0", "(t0, t1)")),
    "layer's signature": Bad(
        lambda: pdf.NeuralODE(hidden, (0, 1)), SignatureError, TypeError, ("model=hidden", "time_dependent=True")
    ),
}

MODELS = {
    "shape": Bad(
        lambda: solve(lambda t, y: y[:1]),
        ShapeError,
        ValueError,
        ("shape (1,)", "shape (2,)", "must have the shape of y"),
    ),
    "nothing": Bad(lambda: solve(returning(None)), ShapeError, ValueError, ("NoneType", "shape (2,)")),
    "tuple": Bad(lambda: solve(lambda t, y: (y,)), ShapeError, ValueError, ("a tuple", "tensor")),
    "dtype": Bad(lambda: solve(lambda t, y: y.float()), DtypeError, TypeError, ("float32", "float64", "y0.to(")),
    "complex": Bad(lambda: solve(lambda t, y: 1j * y), DtypeError, TypeError, ("complex128", "float64")),
    "device": Bad(lambda: solve(lambda t, y: y.to("meta")), DtypeError, TypeError, ("meta", "cpu", "model.to(y0)")),
    "model's own dtype": Bad(
        lambda: solve(lambda t, y: NET(y)),
        DtypeError,
        TypeError,
        ("Double and Float", "torch.float64 on cpu", "model.to("),
    ),
    "convolution's dtype": Bad(
        lambda: solve(lambda t, y: nn.Conv1d(1, 1, 3, padding=1)(y), torch.ones(1, 1, 4, dtype=F64)),
        DtypeError,
        TypeError,
        ("should be the same", "convert the model"),
    ),
    "model's own shape": Bad(
        lambda: solve(lambda t, y: NET(y), torch.ones(3)),
        ShapeError,
        ValueError,
        ("(1x3 and 2x2)", "y0 must have the shape"),
    ),
    "channels": Bad(
        lambda: solve(lambda t, y: nn.Conv1d(3, 3, 1)(y), torch.ones(1, 2, 4)),
        ShapeError,
        ValueError,
        ("to have 3 channels",),
    ),
    "structure": Bad(lambda: solve(lambda t, y: y[0], PAIR), ShapeError, ValueError, ("structure of y0", "(2,), (1,)")),
    "order": Bad(lambda: solve(lambda t, y: y[::-1], PAIR), ShapeError, ValueError, ("[0]: (1,)", "[1]: (2,)")),
    "keys": Bad(
        lambda: solve(lambda t, y: {"b": y["a"]}, {"a": PAIR[0]}),
        ShapeError,
        ValueError,
        ("['b']: (2,)", "structure of y0"),
    ),
    "a number inside": Bad(
        lambda: solve(lambda t, y: (0.0, y[1]), PAIR),
        InvalidStateError,
        TypeError,
        ("[0] is a float", "torch.as_tensor"),
    ),
    "dtype inside": Bad(
        lambda: solve(lambda t, y: (y[0], y[1].double()), PAIR),
        DtypeError,
        TypeError,
        ("[1] is torch.float64", "float32"),
    ),
    "complex inside": Bad(
        lambda: solve(lambda t, y: (1j * y[0], y[1]), PAIR),
        DtypeError,
        TypeError,
        ("[0] is torch.complex64", "float32"),
    ),
    "condition": Bad(
        lambda: solve(event=returning(1.0)), ShapeError, ValueError, ("condition", "real tensor", "float")
    ),
    "condition NaN": Bad(
        lambda: solve(event=lambda t, y: (y[0] - 0.5).sqrt()),
        NonFiniteError,
        ValueError,
        ("condition is NaN", "t=0.", "square root"),
    ),
    "affect's shape": Bad(
        lambda: solve(callbacks=pdf.PresetTimeCallback([0.5], lambda t, y: y[:1])),
        ShapeError,
        ValueError,
        ("affect", "(1,)", "(2,)"),
    ),
    "affect's dtype": Bad(
        lambda: solve(callbacks=pdf.PresetTimeCallback([0.5], lambda t, y: 1j * y)),
        DtypeError,
        TypeError,
        ("affect", "make y0 complex"),
    ),
}

BAD = {
    f"{group}: {name}": bad
    for group, table in (
        ("problem", PROBLEMS),
        ("times", TIMES),
        ("option", OPTIONS),
        ("name", NAMES),
        ("model", MODELS),
    )
    for name, bad in table.items()
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    bad = BAD[name]
    with pytest.raises(PyDiffEqFluxError) as caught:
        bad.call()
    assert type(caught.value) is bad.error
    if bad.error is not NonFiniteError:
        assert isinstance(caught.value, bad.built_in)
    for piece in bad.says:
        assert piece in str(caught.value)


def test_every_class_is_under_the_base_and_a_built_in() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) > 20
    for c in classes:
        assert issubclass(c, PyDiffEqFluxError) and c.__doc__
        if c is not PyDiffEqFluxError:
            assert any(b.__module__ == "builtins" and b not in (Exception, BaseException, object) for b in c.__mro__)
    for c in (InvalidTimesError, MaxStepsError, StepUnderflowError, NonFiniteError):  # where torchdiffeq asserts
        assert issubclass(c, AssertionError)
    assert issubclass(NonFiniteError, FloatingPointError) and issubclass(SolveError, RuntimeError)


@pytest.mark.parametrize(
    "error", [UnknownNameError("method", "x5", ["b", "tsit5"]), UnknownOptionError("f", "a", ["b"])]
)
def test_errors_survive_pickling_and_copying(error: UnknownNameError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is type(error) and str(twin) == str(error) and twin.nearest == error.nearest


def test_the_models_own_errors_come_through() -> None:
    def broken(t: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("out of coffee")

    with pytest.raises(RuntimeError, match="out of coffee") as caught:
        solve(broken)
    assert not isinstance(caught.value, PyDiffEqFluxError)

    def keyless(t: Tensor, y: Tensor) -> Tensor:
        return y + {}["weight"]

    with pytest.raises(KeyError, match="weight"):
        solve(keyless)


def test_an_explained_error_keeps_its_cause() -> None:
    with pytest.raises(DtypeError) as caught:
        solve(lambda t, y: NET(y))
    assert isinstance(caught.value.__cause__, RuntimeError)


# -- a solve that cannot reach its end ----------------------------------------------------------


def nan_after(time: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: torch.where(t > time, NAN, 1.0) * y


def square(t: Tensor, y: Tensor) -> Tensor:
    """y' = y^2 from 1 is 1 / (1 - t): it blows up at t = 1."""
    return y * y


FAILING = {
    "too many steps": (dict(max_steps=3, rtol=1e-10), MaxStepsError, pdf.Status.MAX_STEPS, "max_steps=3"),
    "too many fixed steps": (
        dict(method="rk4", dt=0.1, max_steps=3),
        MaxStepsError,
        pdf.Status.MAX_STEPS,
        "max_steps=3",
    ),
    "blow-up": (dict(func=square, span=(0.0, 2.0)), StepUnderflowError, pdf.Status.STEP_UNDERFLOW, "blow up"),
    "blow-up, stiff method": (
        dict(func=square, span=(0.0, 2.0), method="rosenbrock23"),
        StepUnderflowError,
        pdf.Status.STEP_UNDERFLOW,
        "blow up",
    ),
    "blow-up, float32": (
        dict(func=square, span=(0.0, 2.0), y0=torch.ones(2)),
        StepUnderflowError,
        pdf.Status.STEP_UNDERFLOW,
        "dtype",
    ),
    "NaN from the start": (dict(func=lambda t, y: NAN * y), NonFiniteError, pdf.Status.NON_FINITE, "initial state"),
    "infinite from the start": (dict(func=lambda t, y: y / 0), NonFiniteError, pdf.Status.NON_FINITE, "initial state"),
    "NaN in y0": (
        dict(y0=torch.tensor([1.0, NAN]), func=lambda t, y: t.expand(2)),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "initial",
    ),
    "infinity in y0": (
        dict(y0=torch.tensor([1.0, INF]), func=lambda t, y: t.expand(2)),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "initial",
    ),
    "NaN later": (dict(func=nan_after(0.5)), NonFiniteError, pdf.Status.NON_FINITE, "t=0.5 "),
    "NaN later, first step given": (dict(func=nan_after(0.5), dt=0.3), NonFiniteError, pdf.Status.NON_FINITE, "t=0.5 "),
    "NaN later, smallest step given": (
        dict(func=nan_after(0.5), dt_min=1e-3),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "overflow",
    ),
    "NaN later, backwards": (
        dict(func=lambda t, y: torch.where(t < 0.5, NAN, 1.0) * y, span=(1.0, 0.0)),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "t=0.5 ",
    ),
    "NaN later, Rosenbrock": (
        dict(func=nan_after(0.5), method="rosenbrock23"),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "t=0.5 ",
    ),
    "NaN later, BDF": (dict(func=nan_after(0.5), method="qndf"), NonFiniteError, pdf.Status.NON_FINITE, "t=0.5 "),
    "NaN later, ESDIRK": (
        dict(func=nan_after(0.5), method="kencarp4"),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "t=0.5 ",
    ),
    "NaN in fixed steps": (
        dict(func=nan_after(0.55), method="euler", dt=0.1),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "t=0.6 ",
    ),
    "NaN in RK4": (dict(func=nan_after(0.55), method="rk4", dt=0.1), NonFiniteError, pdf.Status.NON_FINITE, "t=0.5 "),
    "NaN in multistep": (
        dict(func=nan_after(0.55), method="abm4", dt=0.1),
        NonFiniteError,
        pdf.Status.NON_FINITE,
        "t=0.5 ",
    ),
}


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("saveat", [None, 0.125])
def test_failing_solves(name: str, saveat: float | None) -> None:
    given, error, status, says = FAILING[name]
    if saveat is not None and ("fixed" in name or "RK4" in name or "multistep" in name):
        given = given | {"dt": 0.1}
    with pytest.raises(SolveError) as caught:
        solve(saveat=saveat, **given)
    message = str(caught.value)
    assert type(caught.value) is error
    assert (says in message or saveat is not None) and "t_span=" in message and "throw=False" in message

    part = solve(saveat=saveat, throw=False, **given)
    assert part.status is status and not part.success
    span = given.get("span", (0.0, 1.0))
    assert len(part.ts) == len(part.ys) >= 1 and abs(float(part.ts[-1]) - span[1]) > 1e-3
    assert part.ts[0] == span[0]
    sign = math.copysign(1.0, span[1] - span[0])
    assert (part.ts.diff() * sign > 0).all()  # nothing twice
    if "in y0" not in name:
        assert part.ys.isfinite().all()
    exact = {decay: lambda t: (-t).exp(), square: lambda t: 1 / (1 - t)}.get(given.get("func", decay))
    if exact is not None:
        early = part.ts < 0.9
        torch.testing.assert_close(part.ys[early, 0].double(), exact(part.ts[early]), rtol=3e-2, atol=0)


ROWS = {
    "NaN in y0": ({"y0": torch.tensor([[1.0], [NAN]]), "func": lambda t, y: torch.ones_like(y)}, 0.0),
    "NaN from the start": ({"func": lambda t, y: y * torch.tensor([[1.0], [NAN]])}, 0.0),
    "infinite from the start": ({"func": lambda t, y: y / torch.tensor([[1.0], [0.0]])}, 0.0),
    "NaN later": ({"func": lambda t, y: torch.where(t > 0.5, torch.tensor([[1.0], [NAN]]), 1.0) * y}, 0.5),
    "NaN later, smallest step given": (
        {"func": lambda t, y: torch.where(t > 0.5, torch.tensor([[1.0], [NAN]]), 1.0) * y, "dt_min": 1e-3},
        0.5,
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_failing_rows(name: str) -> None:
    given, time = ROWS[name]
    given = {"y0": torch.ones(2, 1), **given}
    spec = pdf.ODEProblem(given.pop("func"), given.pop("y0"), (0.0, 1.0), batched=True)
    with pytest.raises(NonFiniteError, match="row 1"):
        pdf.solve(spec, per_sample=True, **given)
    part = pdf.solve(spec, per_sample=True, throw=False, **given)
    assert part.statuses == [pdf.Status.SUCCESS, pdf.Status.NON_FINITE]
    assert abs(float(part.ts[-1, 1]) - time) < 1e-3 and part.ts[-1, 0] == 1.0


def test_the_part_that_was_solved_has_dense_output_and_gradients() -> None:
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    part = solve(lambda t, y: torch.where(t > 0.5, NAN, rate) * y, throw=False, rtol=1e-8)
    torch.testing.assert_close(part(0.3), torch.full((2,), math.exp(0.3), dtype=F64), rtol=1e-6, atol=0)
    with pytest.raises(DenseOutputError, match="outside the solved span"):
        part(0.7)
    middle = int((part.ts < 0.5).sum()) // 2
    (grad,) = torch.autograd.grad(part.ys[middle, 0], rate)
    torch.testing.assert_close(grad, part.ts[middle] * part.ys[middle, 0], rtol=1e-5, atol=1e-8)


def test_only_the_end_was_asked_for() -> None:
    part = solve(nan_after(0.5), throw=False, save_everystep=False)
    assert part.ys.shape == (1, 2) and abs(float(part.ts[0]) - 0.5) < 1e-3
    torch.testing.assert_close(part.ys[0, 0], part.ts[0].exp(), rtol=1e-3, atol=0)
    with pytest.raises(NonFiniteError, match="t=1 "):
        solve(nan_after(0.5), method="euler", dt=0.1, save_everystep=False)


def test_a_stage_equation_without_a_solution() -> None:
    """y' = 1 / y from 1 backwards reaches zero at t = -1/2, where the square root of the solution ends."""
    with pytest.raises((ConvergenceError, StepUnderflowError, NonFiniteError), match=r"t=-0\.5"):
        solve(lambda t, y: 1 / y, span=(0.0, -1.0), method="kvaerno5")


class _RootGradient(torch.autograd.Function):
    """The identity, with a backward pass that returns NaN once y falls below a half."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        return grads[0] * torch.where(y < 0.5, NAN, 1.0)


@pytest.mark.parametrize("sensealg", ["BacksolveAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "GaussAdjoint"])
def test_nan_in_the_backward_solve(sensealg: str) -> None:
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    ys = solve(lambda t, y: -_RootGradient.apply(y), y0, sensealg=sensealg).ys
    with pytest.raises(NonFiniteError, match=r"backward.*NaN"):
        ys[-1].sum().backward()


def test_a_backward_solve_with_too_many_steps() -> None:
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sensealg = pdf.GaussAdjoint(method="heun", rtol=1e-9, atol=1e-9)
    ys = solve(decay, y0, sensealg=sensealg, max_steps=100, save_everystep=False).ys
    with pytest.raises(MaxStepsError, match=r"backward.*max_steps=100"):
        ys.sum().backward()


def test_a_second_derivative_that_does_not_exist() -> None:
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    ys = solve(lambda t, y: -(y**2), y0, sensealg="gauss").ys
    message = r"GaussAdjoint has no second derivative.*sensealg=DiscreteAdjoint\(\)"
    (first,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
    with pytest.raises(GradientError, match=message):
        first.sum().backward()
    # Nor must it be dropped in silence where the loss is linear in the states.
    (first,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
    torch.testing.assert_close(first.detach(), torch.full((2,), 0.25, dtype=F64), rtol=1e-2, atol=0)
    with pytest.raises(GradientError, match=message):
        (first.square().sum() + y0.sum()).backward()
