"""``torch.autocast``: a model may compute in half precision; states, steps and errors keep the state's dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

#: The dtypes for models, by kind of device, while a solver runs; None outside.
_models: ContextVar[dict[str, torch.dtype] | None] = ContextVar("_models", default=None)


def of_models(kind: str) -> torch.dtype | None:
    """The dtype in which models on this kind of device compute; None where they are not under autocast."""
    inside = _models.get()
    if inside is not None:
        return inside.get(kind)
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def in_own_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a solver's function without autocast, which would round its products; the models in it keep theirs."""
    return _off(function, models=True)


def without_autocast(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function, and the models in it, without autocast."""
    return _off(function, models=False)


def _off(function: Callable[_P, _R], models: bool) -> Callable[_P, _R]:
    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not _anywhere():
            return function(*args, **kwargs)
        with _switched_off(models):
            return function(*args, **kwargs)

    return run


def _anywhere() -> bool:
    return _models.get() is not None or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


@contextmanager
def _switched_off(models: bool) -> Iterator[None]:
    found = {kind: torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)}
    before = _models.set(found if models else {})
    try:
        with ExitStack() as stack:
            for kind in found:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        _models.reset(before)


class UnderAutocast:
    """A model as it runs under the autocast of the solve, wherever it is evaluated; its result in the state's dtype.

    The backward pass is not under autocast by itself, and an adjoint evaluates the model there.
    """

    def __init__(self, model: Callable[..., Any], kind: str, dtype: torch.dtype, state: torch.dtype):
        self.model, self.kind, self.dtype, self.state = model, kind, dtype, state

    def __call__(self, *args: Any) -> Any:
        before = _models.set(None)  # what the model solves itself is a solve under this autocast
        try:
            with torch.autocast(self.kind, self.dtype):
                return self._as_state(self.model(*args))
        finally:
            _models.reset(before)

    def _as_state(self, out: Any) -> Any:
        if isinstance(out, Tensor):
            return out.to(self.state) if out.is_floating_point() else out
        if isinstance(out, dict):
            return {name: self._as_state(x) for name, x in out.items()}
        if isinstance(out, tuple) and hasattr(out, "_fields"):
            return type(out)(*map(self._as_state, out))
        return type(out)(map(self._as_state, out)) if isinstance(out, tuple | list) else out


def as_called(model: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    """``model`` as the solve that begins now is to run it, for states like this one."""
    dtype = of_models(like.device.type)
    return model if dtype is None else UnderAutocast(model, like.device.type, dtype, like.dtype)
