"""Callbacks that are attributes of the right-hand side: ``func.callback_step(t0, y0, dt)`` and its relatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..backends.eager.integrate import Hook
from ..state import StateSpec

#: What each is called on: the beginning of a step, its acceptance, its rejection.
NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")

Callback = Callable[[Tensor, Any, Tensor], Any]
Callbacks = dict[str, Callback]


def callbacks_of(func: Any, suffix: str = "") -> Callbacks:
    """The callbacks that ``func`` has, under the names of :data:`NAMES`; ``suffix`` picks the adjoint's."""
    found = {name: getattr(func, name + suffix, None) for name in NAMES}
    return {name: callback for name, callback in found.items() if callback is not None}


def warn_of_invalid(method: str, callbacks: Callbacks, valid: Iterable[str]) -> None:
    """Warn of callbacks that the method will never call."""
    invalid = set(callbacks) - set(valid)
    if invalid:
        warnings.warn(f"Solver '{method}' does not support callbacks {invalid}", stacklevel=5)


def hook(callback: Callback | None, spec: StateSpec | None, like: Tensor) -> Hook | None:
    """The callback as the loop calls it: with numbers for the times, and the packed state.

    The callback gets the time and the (positive) step size as tensors like ``like``, and the user's state.
    """
    if callback is None:
        return None

    def call(t: float, y: Tensor, dt: float) -> None:
        state = y if spec is None else spec.unflatten(y)
        time, size = (torch.scalar_tensor(x, dtype=like.dtype, device=like.device) for x in (t, abs(dt)))
        callback(time, state, size)

    return call
