"""A call of the interface, its arguments checked: what the four functions have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.common.autocast import as_called
from ..backends.common.rhs import Rhs
from ..errors import InvalidArgumentError, InvalidTimesError
from ..sensealg import SenseAlg
from ..state import StateSpec
from . import julia
from .callbacks import Callbacks, callbacks_of
from .options import Engine, MethodLike, Problem, engine_for
from .state import Conforming, pack_state, tolerance
from .times import Times, check_times


@dataclass
class Call:
    """The packed state, the times, and the engine that solves for them."""

    rhs: Rhs
    y0: Tensor
    spec: StateSpec | None
    times: Times
    engine: Engine | julia.JuliaEngine

    def unpack(self, states: list[Tensor]) -> Any:
        """The states in the user's structure, time first."""
        return self.structured(torch.stack(states))

    def structured(self, ys: Tensor) -> Any:
        return ys if self.spec is None else self.spec.unflatten(ys)


def make_call(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: MethodLike,
    options: dict[str, Any] | None,
    callbacks: Callbacks | None = None,
    backend: str | None = None,
    sensealg: SenseAlg | None = None,
) -> Call:
    """Check the arguments and pick the engine.

    Args:
        callbacks: those of ``func`` where None.
        backend: ``"julia"``, or None for this package's own loop.
        sensealg: how Julia differentiates.

    Raises:
        InvalidArgumentError, InvalidStateError, InvalidTimesError, InvalidToleranceError, InvalidOptionError,
        DtypeError, UnknownNameError
    """
    if not callable(func):
        raise InvalidArgumentError(f"func={func!r} is not callable; give func(t, y) or an nn.Module.")
    packed, spec = pack_state(y0)
    times = check_times(t)
    if t.device != packed.device:
        warnings.warn("t is not on the same device as y0. Coercing to y0.device.", stacklevel=3)
        times = Times(times.values, times.tensor.to(packed.device))
    model = as_called(func, packed)
    rhs = Rhs(model if spec is not None else Conforming(model), spec, packed)
    problem = Problem(
        rhs,
        packed,
        spec,
        tolerance("rtol", rtol, packed, spec),
        tolerance("atol", atol, packed, spec),
        times.tensor,
        callbacks_of(func) if callbacks is None else callbacks,
    )
    if julia.on_julia(backend):
        return Call(rhs, packed, spec, times, julia.engine_for(func, method, options, problem, sensealg))
    return Call(rhs, packed, spec, times, engine_for(method, options, problem))


def require_two_times(t: Tensor) -> None:
    """With an event, ``t`` holds the initial time, and a second one that says which way to go.

    Raises:
        InvalidTimesError: another number of times.
    """
    if isinstance(t, Tensor) and t.dim() == 1 and len(t) != 2:
        raise InvalidTimesError(f"with event_fn, t must hold two times (the second says the direction); got {len(t)}.")
