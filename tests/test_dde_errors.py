"""Bad input to delay equations: each kind has its own exception, whose message names the argument, the value and the
way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DelayMethodError,
    DelaySensitivityError,
    DtypeError,
    HistoryDtypeError,
    HistoryError,
    HistoryShapeError,
    InvalidArgumentError,
    InvalidLagError,
    InvalidTimesError,
    PyDiffEqFluxError,
    ShapeError,
    SignatureError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)

F64 = torch.float64
Y0 = torch.ones(3, 2, dtype=F64)
PAIR = (torch.ones(2), torch.ones(1))


def problem(func: Any = lambda t, y, *past: -past[0], y0: Any = Y0, span: Any = (0.0, 1.0), **options: Any) -> Any:
    return pdf.DDEProblem(func, y0, span, **{"lags": 0.5, **options})


def solve(method: Any = "tsit5", solving: dict[str, Any] | None = None, **options: Any) -> Any:
    return pdf.solve(problem(**options), method, **(solving or {}))


def layer(model: Any = lambda y, past: -past, span: Any = (0.0, 1.0), lags: Any = 0.5, **options: Any) -> Any:
    return pdf.NeuralDDE(model, span, lags, **options)


def limited(t: Tensor) -> Tensor:
    """A table of the past that begins at -0.25."""
    if t < -0.25:
        raise IndexError("nothing before -0.25")
    return Y0


def past_only(t: Tensor) -> Tensor:
    if t > 0:
        raise ValueError("that is the future")
    return Y0


@dataclass
class Bad:
    call: Callable[[], Any]
    error: type[PyDiffEqFluxError]
    built_in: type[Exception]
    says: tuple[str, ...]


BAD = {
    # -- the problem
    "func": Bad(lambda: problem(func=5), InvalidArgumentError, ValueError, ("func=5", "func(t, y, delayed, ...)")),
    "span backwards": Bad(
        lambda: problem(span=(1.0, 0.0)), InvalidTimesError, ValueError, ("runs backwards", "give (0.0, 1.0)")
    ),
    "no lag": Bad(lambda: problem(lags=()), InvalidLagError, ValueError, ("lags is empty", "ODEProblem")),
    "lag zero": Bad(lambda: problem(lags=(0.5, 0.0)), InvalidLagError, ValueError, ("lags[1]=0.0", "positive")),
    "lag negative": Bad(lambda: problem(lags=-0.5), InvalidLagError, ValueError, ("lags=-0.5", "positive")),
    "lag negative tensor": Bad(
        lambda: problem(lags=nn.Parameter(torch.tensor(-2.0))), InvalidLagError, ValueError, ("lags=-2.0",)
    ),
    "lag infinite": Bad(lambda: problem(lags=float("inf")), InvalidLagError, ValueError, ("lags=inf", "finite")),
    "lag a string": Bad(lambda: problem(lags="half"), InvalidLagError, ValueError, ("lags='half'", "lag(t, y)")),
    "lag a matrix": Bad(
        lambda: problem(lags=(torch.ones(2, 2),)), InvalidLagError, ValueError, ("lags[0]=", "one element")
    ),
    "lag that vanishes": Bad(
        lambda: solve(lags=lambda t, y: 0.5 - t, history=lambda t: Y0),
        InvalidLagError,
        ValueError,
        ("lags(t, y) is", "at t=0.5", "torch.clamp"),
    ),
    "lag that is a row": Bad(
        lambda: solve(lags=(lambda t, y: y[:, 0],)), ShapeError, ValueError, ("lags[0](t, y) returned (3,)",)
    ),
    "lag that is no tensor": Bad(
        lambda: solve(lags=lambda t, y: 0.5), ShapeError, ValueError, ("returned float", "as a tensor")
    ),
    # -- the history
    "history shape": Bad(
        lambda: problem(history=torch.ones(2, dtype=F64)),
        HistoryShapeError,
        ValueError,
        ("history has the shape (2,)", "(3, 2)"),
    ),
    "history dtype": Bad(
        lambda: problem(history=torch.ones(3, 2)), HistoryDtypeError, TypeError, ("history is torch.float32", "float64")
    ),
    "history a number": Bad(lambda: problem(history=1.0), HistoryShapeError, ValueError, ("history is a float",)),
    "history structure": Bad(
        lambda: problem(y0=PAIR, history=(torch.ones(2),)), HistoryShapeError, ValueError, ("structure of y0",)
    ),
    "history no structure": Bad(
        lambda: problem(y0=PAIR, history=3.0), HistoryShapeError, ValueError, ("not a state like y0",)
    ),
    "history structure's dtype": Bad(
        lambda: problem(y0=PAIR, history=(torch.ones(2), torch.ones(1, dtype=F64))),
        HistoryDtypeError,
        TypeError,
        ("history[1]",),
    ),
    "history function's shape": Bad(
        lambda: solve(history=lambda t: torch.ones(2, dtype=F64)), HistoryShapeError, ValueError, ("history(", "(2,)")
    ),
    "history function's dtype": Bad(
        lambda: solve(history=lambda t: torch.ones(3, 2)), HistoryDtypeError, TypeError, ("history(", "torch.float32")
    ),
    "history function's type": Bad(
        lambda: solve(history=lambda t: 1.0), HistoryShapeError, ValueError, ("is a float", "function of time")
    ),
    "history that ends": Bad(
        lambda: solve(history=limited),
        HistoryError,
        ValueError,
        ("history(t) failed at t=-0.5", "IndexError: nothing before -0.25", "shorter lags"),
    ),
    "history that ends at the start": Bad(
        lambda: solve(lags=lambda t, y: 0.5 + 0 * y[0, 0], history=past_only),
        HistoryError,
        ValueError,
        ("ValueError: that is the future", "a step beyond it"),
    ),
    "history that is not finite": Bad(
        lambda: solve(history=lambda t: Y0 * torch.log(t)), HistoryError, ValueError, ("NaN or infinite at t=",)
    ),
    # -- the right-hand side
    "result's shape": Bad(
        lambda: solve(func=lambda t, y, past: past[0]), ShapeError, ValueError, ("returned shape (2,)", "(3, 2)")
    ),
    "model's dtype": Bad(
        lambda: solve(func=lambda t, y, past: nn.Linear(2, 2)(past)), DtypeError, TypeError, ("float64", "model.to(y0)")
    ),
    # -- the solve
    "symplectic": Bad(
        lambda: solve("leapfrog", solving={"dt": 0.1}), DelayMethodError, NotImplementedError, ("leapfrog", "Tsit5")
    ),
    "multistep": Bad(lambda: solve("qndf"), DelayMethodError, ValueError, ("method=qndf", "Rodas5P")),
    "predictor": Bad(
        lambda: solve("abm4", solving={"dt": 0.1}), DelayMethodError, NotImplementedError, ("method=abm4",)
    ),
    "automatic switching": Bad(
        lambda: solve("AutoTsit5(Rosenbrock23)"), DelayMethodError, NotImplementedError, ("stiffness in f(t, y)",)
    ),
    "coupled stages": Bad(
        lambda: solve("radauiia5", solving={"dt": 0.1}), DelayMethodError, NotImplementedError, ("radauiia5",)
    ),
    "coarse dense output": Bad(
        lambda: solve("kvaerno5"), DelayMethodError, NotImplementedError, ("kvaerno5", "dense output of order 3")
    ),
    "unknown method": Bad(lambda: solve("tsit6"), UnknownNameError, ValueError, ("method='tsit6'", "'tsit5'")),
    "method for noise": Bad(
        lambda: solve(pdf.SOSRI()), UnsupportedError, NotImplementedError, ("for an SDEProblem", "a DDEProblem")
    ),
    "sensealg": Bad(
        lambda: solve(solving={"sensealg": "GaussAdjoint", "backend": "torch"}),
        DelaySensitivityError,
        NotImplementedError,
        ("GaussAdjoint", "DiscreteAdjoint()"),
    ),
    "checkpoints": Bad(
        lambda: solve(solving={"sensealg": pdf.DiscreteAdjoint(checkpoints="sqrt"), "backend": "torch"}),
        DelaySensitivityError,
        NotImplementedError,
        ("checkpoints='sqrt'", "without checkpoints"),
    ),
    "unknown sensealg": Bad(
        lambda: solve(solving={"sensealg": "Gauss"[:2]}), UnknownNameError, ValueError, ("sensealg='Ga'",)
    ),
    "per sample": Bad(
        lambda: solve(batched=True, solving={"per_sample": True}),
        UnsupportedError,
        NotImplementedError,
        ("per_sample=True with a DDEProblem",),
    ),
    "compiled": Bad(
        lambda: solve(solving={"backend": "compiled"}),
        UnsupportedError,
        NotImplementedError,
        ("backend='compiled'", "DDEProblem", "backend='torch'"),
    ),
    "fixed step longer than the lag": Bad(
        lambda: solve("rk4", solving={"dt": 0.6}), InvalidArgumentError, ValueError, ("dt=0.6", "lag, 0.5")
    ),
    "save times further apart than the lag": Bad(
        lambda: solve("rk4", solving={"saveat": [0.0, 0.3, 1.0]}),
        InvalidArgumentError,
        ValueError,
        ("save times, 0.7", "give a dt"),
    ),
    "mapped over with a lag of its own": Bad(
        lambda: torch.func.vmap(lambda y: solve(y0=y, lags=lambda t, y: 0.5 + y[0, 0] ** 2, history=lambda t: Y0).ys)(
            torch.stack([Y0, Y0])
        ),
        UnsupportedError,
        NotImplementedError,
        ("vmap over a delayed time", "constant lags"),
    ),
    # -- the layer
    "model": Bad(lambda: layer(model=5), InvalidArgumentError, ValueError, ("model=5",)),
    "model's arguments": Bad(
        lambda: layer(model=lambda t, y, p, q: y), SignatureError, TypeError, ("4 required", "inputs='joined'")
    ),
    "a method as history": Bad(
        lambda: layer(history="tsit5"), InvalidArgumentError, ValueError, ("history='tsit5'", "method='tsit5'")
    ),
    "inputs": Bad(lambda: layer(inputs="cat"), UnknownNameError, ValueError, ("inputs='cat'", "joined")),
    "layer's lag": Bad(lambda: layer(lags=[1.0, -1.0]), InvalidLagError, ValueError, ("lags[1]=-1.0",)),
    "layer's option": Bad(lambda: layer(step=1), UnknownOptionError, TypeError, ("NeuralDDE", "'step'", "inputs")),
    "joined structures": Bad(
        lambda: layer(model=nn.Linear(2, 1))((torch.ones(1), torch.ones(1))),
        ShapeError,
        ValueError,
        ("joined", "y0 is a tuple", "2 arguments"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    bad = BAD[name]
    with pytest.raises(PyDiffEqFluxError) as caught:
        bad.call()
    assert type(caught.value) is bad.error
    assert isinstance(caught.value, bad.built_in)
    for piece in bad.says:
        assert piece in str(caught.value)


def test_histories_are_errors_of_both_kinds() -> None:
    assert issubclass(HistoryShapeError, HistoryError) and issubclass(HistoryShapeError, ShapeError)
    assert issubclass(HistoryDtypeError, HistoryError) and issubclass(HistoryDtypeError, DtypeError)
