"""torchdiffeq's method names and ``options``, translated into the package's steppers, settings and grids."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import methods
from ..backends.common.rhs import Rhs
from ..backends.common.tolerances import Norm, Tolerances, rms_norm
from ..backends.eager.catalogue import explicit, stepper_for
from ..backends.eager.fixed.adams import FEWEST, HIGHEST, Adams, Corrector
from ..backends.eager.fixed.tableau import FixedImplicit
from ..backends.eager.integrate import Settings
from ..backends.eager.stepper import Stepper
from ..controllers import PIDController
from ..errors import InvalidOptionError, UnknownNameError
from ..methods import Method
from ..state import StateSpec
from .adaptive import AdaptiveEngine
from .callbacks import NAMES, Callbacks, hook, warn_of_invalid
from .grid import GridEngine
from .scipy_solver import ScipyEngine

Engine = AdaptiveEngine | GridEngine | ScipyEngine
MethodLike = Method | str | None

UNLIMITED = 2**31 - 1
#: torchdiffeq's default is 12; but Adams-Bashforth's stability interval halves with each order, and at 12 rounding
#: errors grow on nearly every problem.
EXPLICIT_ORDER = 6
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
SCIPY = "scipy_solver"


@dataclass
class Problem:
    """What an engine is made for."""

    rhs: Rhs
    packed: Tensor
    spec: StateSpec | None
    rtol: float | Tensor
    atol: float | Tensor
    #: Times, for the dtype that callbacks get.
    like: Tensor
    callbacks: Callbacks


class Options:
    """The user's dictionary, from which what is known is taken."""

    def __init__(self, method: str, given: dict[str, Any] | None):
        self.method, self.left = method, dict(given or {})

    def take(self, name: str, default: Any = None) -> Any:
        return self.left.pop(name, default)

    def number(self, name: str, default: Any, *, above: float = -math.inf) -> Any:
        """A number (or 0-dim tensor) that must be larger than ``above``.

        Raises:
            InvalidOptionError: it is not.
        """
        value = self.take(name, default)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not number > above:
            raise InvalidOptionError(f"options[{name!r}]={value!r} must be a number above {above}.")
        return number

    def done(self) -> None:
        """Warn of what nobody took."""
        if self.left:
            warnings.warn(f"{self.method}: Unexpected arguments {self.left}", stacklevel=5)


def engine_for(method: MethodLike, options: dict[str, Any] | None, problem: Problem) -> Engine:
    """The engine of a method.

    Args:
        method: one of torchdiffeq's names, any name or object of the package's catalogue, or None for dopri5.
        options: torchdiffeq's options of that method.

    Raises:
        UnknownNameError: no such method.
        InvalidOptionError: an option with a value that cannot be worked with.
    """
    name = "dopri5" if method is None else method
    label = str(name)
    taken = Options(label, options)
    norm = packed_norm(taken.take("norm"), problem.spec)
    if name == SCIPY:
        engine: Engine = _scipy(taken, problem)
    else:
        stepper = _stepper(name, taken, problem, norm)
        engine = (_adaptive if stepper.adaptive else _fixed)(taken, problem, stepper, norm)
        if isinstance(engine, AdaptiveEngine):
            engine.method = methods.resolve(name)
    taken.done()
    valid = NAMES if isinstance(engine, AdaptiveEngine) else NAMES[:1] if isinstance(engine, GridEngine) else ()
    warn_of_invalid(label, problem.callbacks, valid)
    return engine


def packed_norm(given: Callable[[Any], Any] | None, spec: StateSpec | None) -> Norm:
    """A norm of the packed state from one that takes the user's state.

    Where None is given: the root mean square; for a tuple the largest of its tensors'.
    """
    if spec is None:
        return rms_norm if given is None else given
    if given is None:
        return lambda packed: largest([rms_norm(part) for part in _parts(spec.unflatten(packed))])
    return lambda packed: given(spec.unflatten(packed))


def largest(norms: Sequence[Tensor]) -> Tensor:
    """The maximum, NaN where one of them is."""
    return norms[0] if len(norms) == 1 else torch.stack(list(norms)).amax()


def _parts(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    return [part for value in values for part in _parts(value)]


def _stepper(name: Method | str, options: Options, problem: Problem, norm: Norm) -> Stepper:
    if name in ADAMS:
        return _adams(str(name), options, problem)
    if name == "rk4":  # torchdiffeq's has the coefficients of the 3/8 rule
        return explicit("rk4_38")
    try:
        method = methods.resolve(name)
    except UnknownNameError as why:
        known = [kind.name for kind in methods.CATALOGUE]
        raise UnknownNameError("method", name, [*known, "adaptive_heun", *ADAMS, SCIPY]) from why
    # As in torchdiffeq, what is solved can be differentiated twice (explicit methods: any number of times).
    stepper = stepper_for(method, Tolerances(problem.rtol, problem.atol, norm), second_order=True)
    if isinstance(stepper, FixedImplicit):
        return replace(stepper, max_iterations=int(options.number("max_iters", 100, above=0)))
    return stepper


def _adams(name: str, options: Options, problem: Problem) -> Adams:
    explicit_only = name == "explicit_adams"
    order = int(options.number("max_order", EXPLICIT_ORDER if explicit_only else HIGHEST, above=0))
    if order > HIGHEST:
        raise InvalidOptionError(f"options['max_order']={order} must be at most {HIGHEST}.")
    if order <= FEWEST:
        warnings.warn(f"max_order is below {FEWEST + 1}, so the solver reduces to `rk4`.", stacklevel=6)
    iterations = int(options.number("max_iters", 4, above=0))
    if explicit_only:
        return Adams(order)
    return Adams(order, Corrector(iterations, problem.rtol, problem.atol))


def _adaptive(options: Options, problem: Problem, stepper: Stepper, norm: Norm) -> AdaptiveEngine:
    dtype = options.take("dtype", torch.float64)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InvalidOptionError(f"options['dtype']={dtype!r} must be a floating point torch.dtype.")
    wide = torch.empty((), dtype=torch.float64, device=problem.packed.device)
    hooks = {name: hook(callback, problem.spec, wide) for name, callback in problem.callbacks.items()}
    smallest, largest = options.number("min_step", 0.0), options.number("max_step", math.inf, above=0)
    if smallest > largest:
        raise InvalidOptionError(f"options: min_step={smallest} must not be larger than max_step={largest}.")
    limit = int(min(options.number("max_num_steps", UNLIMITED, above=0), UNLIMITED))
    settings = Settings(
        tol=Tolerances(problem.rtol, problem.atol, norm),
        controller=_controller(options),
        max_steps=UNLIMITED,
        dt=options.number("first_step", None, above=0),
        dt_min=max(smallest, 0.0),
        dt_max=largest,
        stops=stops(options),
        on_step=hooks.get(NAMES[0]),
        on_accept=hooks.get(NAMES[1]),
        on_reject=hooks.get(NAMES[2]),
    )
    return AdaptiveEngine(options.method, problem.rhs, stepper, settings, problem.spec, limit)


def _controller(options: Options) -> PIDController:
    safety = options.number("safety", 0.9, above=0)
    least, most = options.number("dfactor", 0.2, above=0), options.number("ifactor", 10.0, above=0)
    if not (safety <= 1 and least < 1 <= most):
        raise InvalidOptionError(
            f"options: safety={safety} must be at most 1, dfactor={least} below 1 and ifactor={most} at least 1."
        )
    return PIDController(pcoeff=0.0, icoeff=1.0, safety=safety, factor_min=least, factor_max=most)


def stops(options: Options) -> tuple[float, ...]:
    """``step_t`` and ``jump_t``: both end a step, and start the method afresh."""
    found: list[float] = []
    for name in ("step_t", "jump_t"):
        given = options.take(name)
        if given is None:
            continue
        try:
            found += torch.as_tensor(given, dtype=torch.float64).detach().reshape(-1).tolist()
        except (TypeError, ValueError, RuntimeError):
            raise InvalidOptionError(f"options[{name!r}]={given!r} must be a tensor or sequence of times.") from None
    if len(set(found)) < len(found):
        raise InvalidOptionError("`step_t` and `jump_t` must not have any repeated elements between them.")
    return tuple(found)


def _fixed(options: Options, problem: Problem, stepper: Stepper, norm: Norm) -> GridEngine:
    size, constructor = options.number("step_size", None, above=0), options.take("grid_constructor")
    if size is not None and constructor is not None:
        raise InvalidOptionError("step_size and grid_constructor are mutually exclusive arguments.")
    interp = options.take("interp", "linear")
    if interp not in ("linear", "cubic"):
        raise UnknownNameError("options['interp']", interp, ["linear", "cubic"])
    return GridEngine(
        options.method,
        problem.rhs,
        stepper,
        problem.spec,
        step_size=size,
        grid_constructor=constructor,
        interp=interp,
        perturb=bool(options.take("perturb", False)),
        on_step=hook(problem.callbacks.get(NAMES[0]), problem.spec, problem.like),
    )


def _scipy(options: Options, problem: Problem) -> ScipyEngine:
    for ignored in ("grid_points", "eps"):
        options.take(ignored)
    solver = options.take("solver", "LSODA")
    smallest, largest = options.number("min_step", 0.0), options.number("max_step", math.inf, above=0)
    if smallest > 0 and solver != "LSODA":
        warnings.warn(f"SciPy's {solver} has no min_step; options['min_step'] is ignored.", stacklevel=5)
    return ScipyEngine(problem.rhs, problem.rtol, problem.atol, solver, smallest, largest)
