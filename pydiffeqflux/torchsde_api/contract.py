"""What torchsde's functions ask of their arguments, checked once: the problem and the method that come of it."""

from __future__ import annotations

import itertools
import numbers
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import sde_methods
from ..backends.common.autocast import as_called
from ..backends.common.path import Path
from ..errors import InvalidArgumentError, InvalidStateError, InvalidTimesError, ShapeError, UnknownNameError
from ..sde_methods import INTERPRETATIONS, NOISES, SDEMethod
from .equation import ROLES, UserSde, functions_of, with_log_ratio

#: torchsde's names of methods; "srk" depends on the noise.
METHODS = ("euler", "milstein", "srk", "midpoint", "reversible_heun", "heun", "log_ode", "euler_heun")
#: The approximations that torchsde's Brownian motions have, by what a method needs.
_ENOUGH = {
    "": ("none", "space-time", "davie", "foster"),
    "space-time": ("space-time", "davie", "foster"),
    "levy": ("davie", "foster"),
}


@dataclass
class Checked:
    """The arguments, made sense of."""

    sde: UserSde
    method: SDEMethod
    y0: Tensor
    times: tuple[float, ...]


def check(
    sde: Any,
    y0: Any,
    ts: Any,
    bm: Any,
    method: str | None,
    adaptive: bool,
    names: dict[str, str] | None,
    logqp: bool,
) -> Checked:
    """Arguments of ``sdeint`` and ``sdeint_adjoint``.

    Raises:
        InvalidArgumentError, InvalidTimesError, ShapeError, UnknownNameError, MethodNoiseError: all of them a
            ``ValueError``, as in torchsde; or InvalidStateError.
    """
    noise, interpretation = _kind(sde, "noise_type", NOISES), _kind(sde, "sde_type", INTERPRETATIONS)
    functions = functions_of(sde, _names(names))
    _complete(functions)
    if not isinstance(y0, Tensor) or y0.dim() != 2:
        has = f"of shape {tuple(y0.shape)}" if isinstance(y0, Tensor) else f"a {type(y0).__name__}"
        raise ShapeError(f"y0 is {has}; it must be a tensor of shape (batch, channels).")
    if not y0.is_floating_point():
        raise InvalidStateError(f"y0 has dtype {y0.dtype}; a state is real: y0.double().")
    if logqp:
        functions = with_log_ratio(functions, noise)
        y0 = torch.cat([y0, torch.zeros_like(y0[:, :1])], 1)
    times = _times(ts)
    m = _noise_size(functions, y0, times[0], bm, noise)
    chosen = _method(method, noise, interpretation, adaptive)
    if bm is None:
        bm = _motion(times, (y0.shape[0], m), y0, chosen)
    has = getattr(bm, "levy_area_approximation", "none")
    if has not in _ENOUGH[chosen.area]:
        raise InvalidArgumentError(
            f"bm has levy_area_approximation={has!r}; method={method or chosen.name} needs one of"
            f" {', '.join(_ENOUGH[chosen.area])}: BrownianInterval(..., levy_area_approximation=...)."
        )
    functions = {role: as_called(function, y0) for role, function in functions.items()}
    equation = UserSde(functions, y0, noise, interpretation, m)
    equation.path = Path(bm, times)
    return Checked(equation, chosen, y0, times)


def _kind(sde: Any, attribute: str, known: tuple[str, ...]) -> str:
    if not hasattr(sde, attribute):
        raise InvalidArgumentError(f"sde has no attribute {attribute}; it must be one of {', '.join(known)}.")
    value = getattr(sde, attribute)
    if value not in known:
        raise UnknownNameError(f"sde.{attribute}", value, known)
    return value


def _names(names: Any) -> dict[str, str]:
    given = {} if names is None else dict(names)
    for key in given:
        if key not in ROLES:
            raise UnknownNameError("a key of names", key, ROLES)
    return given


def _complete(functions: dict[str, Any]) -> None:
    if not {"f", "f_and_g", "f_and_g_prod"} & set(functions):
        raise InvalidArgumentError("sde has no drift; it must define f, f_and_g or f_and_g_prod.")
    if not {"g", "f_and_g", "g_prod", "f_and_g_prod"} & set(functions):
        raise InvalidArgumentError("sde has no diffusion; it must define g, f_and_g, g_prod or f_and_g_prod.")


def _times(ts: Any) -> tuple[float, ...]:
    if isinstance(ts, Tensor):
        if ts.requires_grad:
            raise InvalidTimesError("ts requires a gradient; paths of an SDE have no derivative in time: detach it.")
        if ts.dim() != 1:
            raise InvalidTimesError(f"ts has shape {tuple(ts.shape)}; it must be one-dimensional.")
        values = ts.tolist()
    elif isinstance(ts, tuple | list) and all(isinstance(t, numbers.Real) for t in ts):
        values = [float(t) for t in ts]
    else:
        raise InvalidTimesError(f"ts={ts!r} must be a one-dimensional tensor, or a list or tuple of numbers.")
    if len(values) < 2 or any(b <= a for a, b in itertools.pairwise(values)):
        raise InvalidTimesError(f"ts={values} must be at least two times, strictly increasing.")
    return tuple(values)


def _noise_size(functions: dict[str, Any], y0: Tensor, t0: float, bm: Any, noise: str) -> int:
    """The number of Brownian motions; every function that is there is evaluated once, and its shape compared."""
    batch, d = y0.shape
    matrix = noise != "diagonal"
    sizes: dict[str, int] = {}
    if bm is not None:
        shape = tuple(bm.shape)
        if len(shape) != 2 or shape[0] != batch:
            raise ShapeError(f"bm has shape {shape}; for y0 of shape {(batch, d)} it must be ({batch}, channels).")
        sizes["bm"] = shape[1]
    t = torch.scalar_tensor(t0, dtype=y0.dtype, device=y0.device)

    def drift(out: Tensor, name: str) -> None:
        if tuple(out.shape) != (batch, d):
            raise ShapeError(f"{name} returned shape {tuple(out.shape)}; a drift has the shape {(batch, d)} of y0.")

    def diffusion(out: Tensor, name: str) -> None:
        shape = tuple(out.shape)
        if len(shape) != 2 + matrix or shape[:2] != (batch, d):
            wanted = f"({batch}, {d}, noise channels)" if matrix else f"({batch}, {d})"
            raise ShapeError(f"{name} returned shape {shape}; a diffusion of {noise} noise has the shape {wanted}.")
        sizes[name] = shape[-1]

    with torch.no_grad():
        if "f" in functions:
            drift(functions["f"](t, y0), "f")
        if "g" in functions:
            diffusion(functions["g"](t, y0), "g")
        if "f_and_g" in functions:
            f, g = functions["f_and_g"](t, y0)
            drift(f, "f_and_g")
            diffusion(g, "f_and_g")
        if len(set(sizes.values())) > 1:
            raise ShapeError(f"the numbers of noise channels differ: {sizes}.")
        if not sizes:
            raise InvalidArgumentError(
                "the number of noise channels is not known: pass bm, or define g or f_and_g besides the products."
            )
        m = next(iter(sizes.values()))
        if noise == "scalar" and m != 1:
            raise ShapeError(f"scalar noise has one channel; the diffusion or bm has {m}: {sizes}.")
        v = torch.zeros(batch, m, dtype=y0.dtype, device=y0.device)
        if "g_prod" in functions:
            drift(functions["g_prod"](t, y0, v), "g_prod")
        if "f_and_g_prod" in functions:
            for out in functions["f_and_g_prod"](t, y0, v):
                drift(out, "f_and_g_prod")
    return m


def _method(method: str | None, noise: str, interpretation: str, adaptive: bool) -> SDEMethod:
    if method is None:
        method = "midpoint" if interpretation == "stratonovich" else "euler" if noise == "general" else "srk"
    if adaptive and method == "euler" and noise != "additive":
        warnings.warn(
            "adaptive=True with method='euler' and noise that is not additive: the steps are chosen by looking at the"
            " path, and the result need not converge to the solution; use 'srk' or 'milstein'.",
            stacklevel=4,
        )
    if method == "srk":
        chosen: SDEMethod = sde_methods.SRA1() if noise == "additive" else sde_methods.SRIW2()
    elif isinstance(method, str) and (method in METHODS or sde_methods.is_known(method)):
        chosen = sde_methods.resolve(method)
    else:
        raise UnknownNameError("method", method, [*METHODS, *(kind.name for kind in sde_methods.CATALOGUE)])
    chosen = type(chosen)(adaptive=False)
    sde_methods.check(chosen, noise, interpretation)
    return chosen


def _motion(times: tuple[float, ...], size: tuple[int, int], y0: Tensor, method: SDEMethod) -> Any:
    """torchsde's own default, so that the same numpy seed gives the same path."""
    from torchsde import BrownianInterval

    approximation = {"": "none", "space-time": "space-time", "levy": "foster"}[method.area]
    return BrownianInterval(
        t0=times[0],
        t1=times[-1],
        size=size,
        dtype=y0.dtype,
        device=y0.device,
        levy_area_approximation=approximation,
    )
