"""Bad input to SDEs: each kind has its own exception, whose message names the argument, the value and the way out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pydiffeqflux as pdf
from pydiffeqflux.errors import (
    DtypeError,
    InvalidArgumentError,
    InvalidOptionError,
    InvalidStateError,
    InvalidTimesError,
    MethodNoiseError,
    PyDiffEqFluxError,
    ShapeError,
    SignatureError,
    StepSizeRequiredError,
    UnknownNameError,
    UnknownOptionError,
    UnsupportedError,
)

F64 = torch.float64
Y0 = torch.ones(3, 2, dtype=F64)


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def problem(drift: Any = decay, diffusion: Any = decay, y0: Any = Y0, span: Any = (0.0, 1.0), **options: Any) -> Any:
    return pdf.SDEProblem(drift, diffusion, y0, span, **options)


def solve(method: Any = "em", solving: dict[str, Any] | None = None, **options: Any) -> Any:
    return pdf.solve(problem(**options), method, **{"dt": 0.25, **(solving or {})})


def shaped(*shape: int, dtype: torch.dtype = F64) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: torch.zeros(shape, dtype=dtype)


def motion(*shape: int, **options: Any) -> Any:
    return pdf.BrownianInterval(0.0, 1.0, shape, F64, **options)


@dataclass
class Bad:
    call: Callable[[], Any]
    error: type[PyDiffEqFluxError]
    built_in: type[Exception]
    says: tuple[str, ...]


NET = nn.Linear(2, 2)
TIME = torch.tensor(1.0, requires_grad=True)

BAD = {
    # -- the problem
    "drift": Bad(lambda: problem(drift=5), InvalidArgumentError, ValueError, ("drift=5", "drift(t, y)")),
    "diffusion": Bad(lambda: problem(diffusion=None), InvalidArgumentError, ValueError, ("diffusion=None",)),
    "y0 a tuple": Bad(lambda: problem(y0=(Y0,)), InvalidStateError, TypeError, ("y0 is a tuple", "(*, d)")),
    "y0 complex": Bad(lambda: problem(y0=Y0 + 0j), InvalidStateError, TypeError, ("complex128", "real tensor")),
    "y0 a number": Bad(lambda: problem(y0=torch.ones(())), InvalidStateError, TypeError, ("no dimension",)),
    "y0 integers": Bad(lambda: problem(y0=Y0.int()), InvalidStateError, TypeError, ("torch.int32", "y0.double()")),
    "noise": Bad(lambda: problem(noise="diag"), UnknownNameError, ValueError, ("noise='diag'", "'diagonal'")),
    "interpretation": Bad(
        lambda: problem(interpretation="strat"),
        UnknownNameError,
        ValueError,
        ("interpretation='strat'", "stratonovich"),
    ),
    "span backwards": Bad(
        lambda: problem(span=(1.0, 0.0)), InvalidTimesError, ValueError, ("(1.0, 0.0)", "backwards", "give (0.0, 1.0)")
    ),
    "span empty": Bad(lambda: problem(span=(1.0, 1.0)), InvalidTimesError, ValueError, ("must differ",)),
    "span with a gradient": Bad(
        lambda: problem(span=(0.0, TIME)), UnsupportedError, NotImplementedError, ("t_span[1]=1.0", "detach")
    ),
    "seed": Bad(lambda: problem(seed=-1), InvalidArgumentError, ValueError, ("seed=-1", ">= 0")),
    "seed a float": Bad(lambda: problem(seed=1.5), InvalidArgumentError, ValueError, ("seed=1.5", "integer")),
    "seed and path": Bad(
        lambda: problem(seed=1, brownian=motion(3, 2)),
        InvalidArgumentError,
        ValueError,
        ("seed=1", "exclude each other"),
    ),
    "brownian": Bad(lambda: problem(brownian=3), InvalidArgumentError, ValueError, ("brownian=3", "brownian(ta, tb)")),
    "noise_dim": Bad(lambda: problem(noise_dim=0), InvalidArgumentError, ValueError, ("noise_dim=0", "positive")),
    # -- what the functions return
    "drift's shape": Bad(lambda: solve(drift=shaped(3, 1)), ShapeError, ValueError, ("(3, 1)", "(3, 2)")),
    "diffusion a matrix": Bad(
        lambda: solve(diffusion=shaped(3, 2, 2)), ShapeError, ValueError, ("(3, 2, 2)", "(3, 2)", "noise='general'")
    ),
    "diffusion too short": Bad(
        lambda: solve(diffusion=shaped(3, 1)), ShapeError, ValueError, ("(3, 1)", "noise='diagonal'")
    ),
    "diffusion no matrix": Bad(
        lambda: solve(diffusion=shaped(3, 2), noise="general"),
        ShapeError,
        ValueError,
        ("noise='general'", "(3, 2, 'm')", "say noise='diagonal'"),
    ),
    "diffusion of other rows": Bad(
        lambda: solve(diffusion=shaped(1, 2, 4), noise="general"), ShapeError, ValueError, ("(1, 2, 4)",)
    ),
    "two scalar noises": Bad(
        lambda: solve(diffusion=shaped(3, 2, 2), noise="scalar"),
        ShapeError,
        ValueError,
        ("2 Brownian motions", "(3, 2, 1)", "noise='general'"),
    ),
    "diffusion no tensor": Bad(
        lambda: solve(diffusion=lambda t, y: 0.1), ShapeError, ValueError, ("diffusion returned a float",)
    ),
    "diffusion's dtype": Bad(
        lambda: solve(diffusion=shaped(3, 2, dtype=torch.float32)), DtypeError, TypeError, ("torch.float32", "float64")
    ),
    "diffusion in single precision": Bad(
        lambda: solve(diffusion=lambda t, y: NET(y)), DtypeError, TypeError, ("the diffusion failed", "model.to(y0)")
    ),
    "diffusion that fails": Bad(
        lambda: solve(diffusion=lambda t, y: y @ torch.ones(3, 3, dtype=F64)),
        ShapeError,
        ValueError,
        ("the diffusion failed", "(3, 2)"),
    ),
    "noise_dim and diffusion": Bad(
        lambda: solve(diffusion=shaped(3, 2, 4), noise="general", noise_dim=3),
        ShapeError,
        ValueError,
        ("4 Brownian motions", "noise_dim", "says 3"),
    ),
    # -- methods
    "method of the other interpretation": Bad(
        lambda: solve("em", interpretation="stratonovich"),
        MethodNoiseError,
        NotImplementedError,
        ("method=em", "interpretation='stratonovich'", "milstein, euler_heun, heun"),
    ),
    "method for other noise": Bad(
        lambda: solve("sosra"),
        MethodNoiseError,
        ValueError,
        ("method=sosra", "additive", "noise='diagonal'", "use one of em, milstein, sriw1, sriw2, sosri"),
    ),
    "adaptive Euler": Bad(
        lambda: solve(pdf.EM(adaptive=True)), MethodNoiseError, ValueError, ("EM(adaptive=True)", "Gaines", "milstein")
    ),
    "adaptive log-ODE": Bad(
        lambda: solve(pdf.LogODE(adaptive=True), interpretation="stratonovich"),
        MethodNoiseError,
        ValueError,
        ("LogODE(adaptive=True)", "SDEHeun"),
    ),
    "unknown method": Bad(lambda: solve("sosrii"), UnknownNameError, ValueError, ("method='sosrii'", "'sosri'")),
    "method for ODEs": Bad(lambda: solve("tsit5"), UnknownNameError, ValueError, ("method='tsit5'", "euler_maruyama")),
    "method for ODEs, an object": Bad(
        lambda: solve(pdf.Tsit5()), UnsupportedError, NotImplementedError, ("Tsit5", "SOSRI")
    ),
    "method for SDEs": Bad(
        lambda: pdf.solve(pdf.ODEProblem(decay, Y0, (0.0, 1.0)), pdf.SOSRI()),
        UnsupportedError,
        NotImplementedError,
        ("method=sosri", "SDEProblem", "Tsit5"),
    ),
    "no dt": Bad(lambda: pdf.solve(problem(), "em"), StepSizeRequiredError, ValueError, ("method=em", "dt", "saveat")),
    "no dt by default": Bad(
        lambda: pdf.solve(problem(diffusion=shaped(3, 2, 1), noise="general")),
        StepSizeRequiredError,
        ValueError,
        ("dt",),
    ),
    "dt below the path's resolution": Bad(
        lambda: solve(solving={"dt": 1e-8}), InvalidArgumentError, ValueError, ("dt=1e-08", "resolved to", "brownian")
    ),
    # -- options
    "event": Bad(
        lambda: solve(solving={"event": lambda t, y: y[0, 0]}), UnsupportedError, NotImplementedError, ("event", "path")
    ),
    "per_sample": Bad(
        lambda: solve(solving={"per_sample": True}),
        UnsupportedError,
        NotImplementedError,
        ("per_sample", "leave it out"),
    ),
    "saveat with a gradient": Bad(
        lambda: solve(solving={"saveat": TIME[None]}), UnsupportedError, NotImplementedError, ("saveat", "detach")
    ),
    "dose time with a gradient": Bad(
        lambda: solve(solving={"callbacks": pdf.PresetTimeCallback([TIME], lambda t, y: y)}),
        UnsupportedError,
        NotImplementedError,
        ("time of a callback", "detach"),
    ),
    "saveat outside": Bad(lambda: solve(solving={"saveat": [2.0]}), InvalidTimesError, ValueError, ("saveat[0]=2.0",)),
    # -- a path of the user's
    "path of another shape": Bad(
        lambda: solve(brownian=motion(3, 1)),
        ShapeError,
        ValueError,
        ("(3, 1)", "(3, 2)", "BrownianInterval(t0, t1, size"),
    ),
    "path of another dtype": Bad(
        lambda: solve(brownian=pdf.BrownianInterval(0.0, 1.0, (3, 2), torch.float32)),
        ShapeError,
        ValueError,
        ("torch.float32", "dtype=torch.float64"),
    ),
    "path too short": Bad(
        lambda: solve(brownian=motion(3, 2), span=(0.0, 2.0)), InvalidArgumentError, ValueError, ("t_span=(0.0, 2.0)",)
    ),
    "path without areas": Bad(
        lambda: solve("sosri", brownian=motion(3, 2)),
        InvalidArgumentError,
        ValueError,
        ("return_U=True", "levy_area_approximation='space-time'"),
    ),
    "path that knows no areas": Bad(
        lambda: solve("sosri", brownian=lambda a, b: Y0), InvalidArgumentError, ValueError, ("return_U=True",)
    ),
    "path of one time": Bad(
        lambda: solve(brownian=lambda t: Y0), InvalidArgumentError, ValueError, ("brownian(ta, tb)",)
    ),
    "path outside its span": Bad(
        lambda: solve(seed=1).brownian(0.0, 1.5), InvalidTimesError, ValueError, ("t=1.5", "[0.0, 1.0]")
    ),
    # -- layers
    "layer's drift": Bad(
        lambda: pdf.NeuralDSDE(3, NET, (0.0, 1.0)), InvalidArgumentError, ValueError, ("drift=3", "drift(y)")
    ),
    "layer's diffusion": Bad(
        lambda: pdf.NeuralSDE(NET, 3, (0.0, 1.0), 2), InvalidArgumentError, ValueError, ("diffusion=3", "nn.Module")
    ),
    "layer's signature": Bad(
        lambda: pdf.NeuralDSDE(NET, lambda *a: a, (0.0, 1.0)), SignatureError, TypeError, ("time_dependent=True",)
    ),
    "layer's span": Bad(
        lambda: pdf.NeuralDSDE(NET, NET, (1.0, 0.0)), InvalidTimesError, ValueError, ("t_span=(1.0, 0.0)",)
    ),
    "layer's method": Bad(
        lambda: pdf.NeuralDSDE(NET, NET, (0.0, 1.0), "sosra"), MethodNoiseError, ValueError, ("sosra", "sosri")
    ),
    "layer's option": Bad(
        lambda: pdf.NeuralDSDE(NET, NET, (0.0, 1.0), reltol=1.0),
        UnknownOptionError,
        TypeError,
        ("NeuralDSDE()", "'reltol'", "rtol", "interpretation"),
    ),
    "nbrown": Bad(
        lambda: pdf.NeuralSDE(NET, NET, (0.0, 1.0), "em"), InvalidArgumentError, ValueError, ("nbrown='em'", "positive")
    ),
    "nbrown and diffusion": Bad(
        lambda: pdf.NeuralSDE(decay, shaped(3, 2, 4), (0.0, 1.0), 3, "em", dt=0.5)(Y0),
        ShapeError,
        ValueError,
        ("nbrown", "4 Brownian motions", "says 3"),
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


# -- torchsde's interface -----------------------------------------------------------------------


class Equation(nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, **attributes: Any):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return y


class Bare(nn.Module):
    noise_type, sde_type = "diagonal", "ito"


def sdeint(sde: Any = None, y0: Any = Y0, ts: Any = (0.0, 1.0), adjoint: bool = False, **options: Any) -> Any:
    function = pdf.sdeint_adjoint if adjoint else pdf.sdeint
    return function(Equation() if sde is None else sde, y0, ts, **{"dt": 0.5, **options})


API = {
    "no noise_type": Bad(lambda: sdeint(object()), InvalidArgumentError, ValueError, ("no attribute noise_type",)),
    "noise_type": Bad(
        lambda: sdeint(Equation(noise_type="diag")), UnknownNameError, ValueError, ("sde.noise_type='diag'", "diagonal")
    ),
    "sde_type": Bad(lambda: sdeint(Equation(sde_type="x")), UnknownNameError, ValueError, ("sde.sde_type='x'",)),
    "no drift": Bad(lambda: sdeint(Bare()), InvalidArgumentError, ValueError, ("no drift", "f_and_g")),
    "no diffusion": Bad(
        lambda: sdeint(Equation(), names={"diffusion": "f"}, logqp=True), InvalidArgumentError, ValueError, ("lacks h",)
    ),
    "names": Bad(lambda: sdeint(names={"drifts": "f"}), UnknownNameError, ValueError, ("'drifts'", "drift")),
    "names of nothing": Bad(
        lambda: sdeint(names={"drift": "w"}), InvalidArgumentError, ValueError, ("names['drift']='w'",)
    ),
    "y0 of one dimension": Bad(lambda: sdeint(y0=Y0[0]), ShapeError, ValueError, ("y0", "(batch, channels)")),
    "y0 integers": Bad(lambda: sdeint(y0=Y0.int()), InvalidStateError, TypeError, ("int32", "y0.double()")),
    "ts decreasing": Bad(lambda: sdeint(ts=[1.0, 0.0]), InvalidTimesError, ValueError, ("[1.0, 0.0]", "increasing")),
    "ts one time": Bad(lambda: sdeint(ts=[1.0]), InvalidTimesError, ValueError, ("[1.0]", "two times")),
    "ts a word": Bad(lambda: sdeint(ts="01"), InvalidTimesError, ValueError, ("ts='01'",)),
    "ts with a gradient": Bad(
        lambda: sdeint(ts=torch.stack([torch.zeros(()), TIME])), InvalidTimesError, ValueError, ("ts", "detach")
    ),
    "method": Bad(lambda: sdeint(method="blah"), UnknownNameError, ValueError, ("method='blah'", "srk")),
    "method of the other kind": Bad(lambda: sdeint(method="heun"), MethodNoiseError, ValueError, ("heun", "em")),
    "bm": Bad(lambda: sdeint(bm=motion(2, 2)), ShapeError, ValueError, ("bm has shape (2, 2)", "(3, channels)")),
    "bm's size": Bad(lambda: sdeint(bm=motion(3, 4)), ShapeError, ValueError, ("noise channels differ",)),
    "bm without areas": Bad(
        lambda: sdeint(bm=motion(3, 2)), InvalidArgumentError, ValueError, ("'none'", "space-time, davie, foster")
    ),
    "dt": Bad(lambda: sdeint(dt=-1.0), InvalidOptionError, ValueError, ("dt=-1.0", ">= 0")),
    "dt zero": Bad(lambda: sdeint(dt=0.0), InvalidOptionError, ValueError, ("dt=0.0", "positive")),
    "rtol": Bad(lambda: sdeint(rtol=TIME), InvalidOptionError, ValueError, ("rtol", "gradient")),
    "unknown argument": Bad(lambda: sdeint(rtoll=1.0), UnknownOptionError, TypeError, ("sdeint()", "'rtoll'", "rtol")),
    "options": Bad(
        lambda: sdeint(options={"gradfree": True}),
        UnknownOptionError,
        TypeError,
        ("options", "'gradfree'", "grad_free"),
    ),
    "extra state": Bad(
        lambda: sdeint(extra_solver_state=(Y0, Y0, Y0)), InvalidArgumentError, ValueError, ("reversible_heun",)
    ),
    "adjoint of no module": Bad(
        lambda: sdeint(problem_like(), adjoint=True), InvalidArgumentError, ValueError, ("adjoint_params", "nn.Module")
    ),
    "adjoint method": Bad(
        lambda: sdeint(adjoint=True, adjoint_method="milstein"),
        UnsupportedError,
        NotImplementedError,
        ("midpoint, heun",),
    ),
    "adjoint method of the reversible one": Bad(
        lambda: sdeint(adjoint=True, adjoint_method="adjoint_reversible_heun"),
        InvalidArgumentError,
        ValueError,
        ("method='reversible_heun' only",),
    ),
    "adjoint options": Bad(
        lambda: sdeint(adjoint=True, adjoint_options={"grad_free": True}),
        UnknownOptionError,
        TypeError,
        ("adjoint_options", "grad_free"),
    ),
    "diffusion needed": Bad(
        lambda: sdeint(Products(), bm=motion(3, 2), method="milstein"),
        InvalidArgumentError,
        ValueError,
        ("neither g nor f_and_g", "midpoint"),
    ),
    "noise size unknown": Bad(lambda: sdeint(Products()), InvalidArgumentError, ValueError, ("pass bm",)),
}


def problem_like() -> Any:
    class Plain:
        noise_type, sde_type = "diagonal", "ito"
        f = staticmethod(decay)
        g = staticmethod(decay)

    return Plain()


class Products(nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g_prod(self, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return y * v


@pytest.mark.parametrize("name", API)
def test_bad_input_to_torchsdes_interface(name: str) -> None:
    bad = API[name]
    with pytest.raises(PyDiffEqFluxError) as caught:
        bad.call()
    assert type(caught.value) is bad.error
    assert isinstance(caught.value, bad.built_in)
    for piece in bad.says:
        assert piece in str(caught.value)


def test_warnings_as_torchsdes() -> None:
    with pytest.warns(UserWarning, match="need not converge"):
        sdeint(method="euler", adaptive=True, rtol=0.1, atol=0.1)
    with pytest.warns(UserWarning, match="not exact"):
        sdeint(Equation(sde_type="stratonovich"), adjoint=True, method="reversible_heun", adjoint_method="midpoint")
