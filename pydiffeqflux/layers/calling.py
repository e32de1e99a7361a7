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

    @property
    def separable(self) -> Any:
        """The model's two halves, if it says that it has them (see :class:`pydiffeqflux.SeparableField`)."""
        return getattr(self.model, "separable", None)


def as_rhs(model: Callable[..., Any], time_dependent: bool) -> Callable[[Any, Any], Any]:
    """``func(t, y)`` for ``model``."""
    return model if time_dependent else Autonomous(model)


def takes_time(model: Callable[..., Any]) -> bool:
    """Whether ``model`` takes ``(t, y)`` (True) or ``(y)`` (False), by its required positional parameters.

    Raises:
        SignatureError: they are neither one nor two, or cannot be known.
    """
    inner = model
    while isinstance(inner, nn.Module) and (wrapped := _wrapped(inner)) is not None:
        inner = wrapped
    target = inner.forward if isinstance(inner, nn.Module) else inner
    name = type(inner).__name__ if isinstance(inner, nn.Module) else getattr(inner, "__name__", repr(inner))
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # something built in
        found = "a signature that cannot be read"
    else:
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        required = [p for p in positional if p.default is p.empty]
        if len(required) in (1, 2):
            return len(required) == 2
        found = f"{len(required)} required positional arguments"
    raise SignatureError(
        f"model={name} has {found}, so it cannot be told whether it wants (y) or (t, y); say time_dependent=True for"
        f" model(t, y) or time_dependent=False for model(y)."
    )


def _wrapped(module: nn.Module) -> Any:
    """What a wrapper that hides its module's signature wraps: torch.compile, DataParallel and its like."""
    if hasattr(module, "_orig_mod"):
        return module._orig_mod
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module
    return None
