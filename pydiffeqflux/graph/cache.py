"""Tracing once for many solves, and noticing when that would be wrong.

A trace holds what Python decided while it was made: numbers, branches, which tensors were reached for. Before every
solve the function is run once more, eagerly, and has to reach for the same tensors; whoever uses the trace compares
its value at that point, too (:meth:`Traced.agrees`). What fails is traced anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .kernels import Kernels, kernels
from .trace import Evaluate

#: How many right-hand sides are remembered.
CAPACITY = 32


@dataclass
class Traced:
    """A right-hand side's programs, and its value at the start of the solve at hand."""

    kernels: Kernels
    start: Tensor

    def agrees(self, value: Tensor) -> bool:
        """Whether ``value``, the translated function's at the same point, is the function's to rounding."""
        tol = 2e-4 if self.start.dtype == torch.float32 else 1e-9
        scale = float(self.start.abs().max()) if self.start.numel() else 0.0
        return bool(torch.allclose(value, self.start, rtol=tol, atol=tol * max(scale, 1e-30), equal_nan=True))


class TraceCache:
    """The last few right-hand sides by function, shape and dtype."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, Kernels] = OrderedDict()

    def get(self, func: Callable[..., Any], evaluate: Evaluate, t: Tensor, y: Tensor) -> Traced:
        """The programs of ``func``; ``evaluate`` is ``func`` for a packed state.

        Raises:
            UntraceableError: see :func:`pydiffeqflux.graph.trace.trace`.
        """
        key = (_Same(func), tuple(y.shape), y.dtype)
        with torch.no_grad(), _Reached() as seen:
            start = evaluate(t.detach(), y.detach())
        found = self._known.get(key)
        if found is None or not _reaches(found, seen.tensors):
            found = kernels(evaluate, t, y)
            self._known[key] = found
            while len(self._known) > CAPACITY:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return Traced(found, start)

    def forget(self, func: Callable[..., Any]) -> None:
        """Trace ``func`` anew next time."""
        same = _Same(func)
        for key in [k for k in self._known if k[0] == same]:
            del self._known[key]


class _Same:
    """A function as a key: equal functions (a wrapper around the same module, say) in the same mode are the same."""

    def __init__(self, func: Callable[..., Any]):
        self.func = func
        self.mode = tuple(m.training for m in _modules(func))
        try:
            self._hash = hash(func)
        except TypeError:
            self._hash = id(func)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or self.mode != other.mode:
            return False
        if self.func is other.func:
            return True
        try:
            return bool(type(self.func) is type(other.func) and self.func == other.func)
        except Exception:
            return False


def _modules(func: Any) -> Iterator[nn.Module]:
    inner = func if isinstance(func, nn.Module) else getattr(func, "model", None) or getattr(func, "__self__", None)
    if isinstance(inner, nn.Module):
        yield from inner.modules()


class _Reached(TorchFunctionMode):
    """Remembers which tensors are passed to torch functions."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note(args)
        if kwargs:
            self._note(tuple(kwargs.values()))
        return func(*args, **(kwargs or {}))

    def _note(self, values: Any) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self.tensors.add(id(value))
            elif isinstance(value, tuple | list):
                self._note(value)


def _reaches(known: Kernels, seen: set[int]) -> bool:
    """Whether the tensors that gradients go to are still the ones that the function uses."""
    return all(id(x) in seen for x in known.graphs.externals[: known.graphs.params])
