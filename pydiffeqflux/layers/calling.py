"""How a model wants to be called: ``model(y)`` or ``model(t, y)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import SignatureError


@dataclass(frozen=True)
class Autonomous:
    """``func(t, y)`` for a model of the state alone."""

    model: Callable[[Any], Any]

    def __call__(self, t: Any, y: Any) -> Any:
        return self.model(y)


def as_rhs(model: Callable[..., Any], time_dependent: bool | None) -> Callable[[Any, Any], Any]:
    """``func(t, y)`` for ``model``; with ``time_dependent=None`` told apart by its signature.

    Raises:
        SignatureError: a signature that says neither one nor two positional arguments.
    """
    if time_dependent is None:
        time_dependent = takes_time(model)
    return model if time_dependent else Autonomous(model)


def takes_time(model: Callable[..., Any]) -> bool:
    """Whether ``model`` takes ``(t, y)`` (True) or ``(y)`` (False), by its required positional parameters."""
    inner = getattr(model, "_orig_mod", model)  # torch.compile hides the signature of what it wraps
    target = inner.forward if isinstance(inner, nn.Module) else inner
    name = type(inner).__name__ if isinstance(inner, nn.Module) else getattr(inner, "__name__", repr(inner))
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(required) in (1, 2):
        return len(required) == 2
    raise SignatureError(
        f"model={name} takes {len(required)} required positional arguments, so it cannot be told whether it wants"
        f" (y) or (t, y); say time_dependent=True for model(t, y) or time_dependent=False for model(y)."
    )
