"""Tracing once for many solves, and noticing when that would be wrong.

A trace holds what Python decided while it was made: numbers, branches, which tensors were reached for. While nothing
that the function can reach has changed (see ``reach``), it is good. Otherwise the function is run once more, eagerly,
and has to reach for the same tensors; whoever uses the trace compares its value at that point, too
(:meth:`Traced.agrees`). What fails is traced anew.
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
from .reach import Reach, reach
from .trace import Evaluate

#: How many right-hand sides are remembered.
CAPACITY = 32


@dataclass
class Traced:
    """A right-hand side's programs, and its value at the start of the solve at hand.

    ``start`` is None where nothing that the function reaches has changed since its value was last compared.
    """

    kernels: Kernels
    start: Tensor | None

    def agrees(self, value: Tensor) -> bool:
        """Whether ``value``, the translated function's at the same point, is the function's to rounding."""
        if self.start is None:
            return True
        tol = 2e-4 if self.start.dtype == torch.float32 else 1e-9
        scale = float(self.start.abs().max()) if self.start.numel() else 0.0
        return bool(torch.allclose(value, self.start, rtol=tol, atol=tol * max(scale, 1e-30), equal_nan=True))


class TraceCache:
    """The last few right-hand sides by function, shape and dtype."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, _Known] = OrderedDict()

    def get(self, func: Callable[..., Any], evaluate: Evaluate, t: Tensor, y: Tensor) -> Traced:
        """The programs of ``func``; ``evaluate`` is ``func`` for a packed state.

        Raises:
            UntraceableError: see :func:`pydiffeqflux.graph.trace.trace`.
        """
        key = (_Same(func), tuple(y.shape), y.dtype)
        found = self._known.get(key)
        if found is not None and found.reach is not None and found.reach.unchanged():
            self._known.move_to_end(key)
            return Traced(found.kernels, None)
        with torch.no_grad(), _Reached() as seen:
            start = evaluate(t.detach(), y.detach())
        if found is None or not _reaches(found.kernels, seen.tensors):
            found = _Known(kernels(evaluate, t, y), func)
        # Run and traced, it is what it is now: what it changes by running (a counter) has been changed.
        found.look(seen.tensors)
        self._known[key] = found
        while len(self._known) > CAPACITY:
            self._known.popitem(last=False)
        self._known.move_to_end(key)
        return Traced(found.kernels, start)

    def forget(self, func: Callable[..., Any]) -> None:
        """Trace ``func`` anew next time."""
        same = _Same(func)
        for key in [k for k in self._known if k[0] == same]:
            del self._known[key]


@dataclass
class _Known:
    """A right-hand side's programs, and what it reached when its value was last compared."""

    kernels: Kernels
    func: Callable[..., Any]
    reach: Reach | None = None

    def look(self, used: set[int]) -> None:
        """Walk the function anew. Where the walk does not find all tensors that it uses, it proves nothing."""
        found = reach(self.func)
        known = {id(x) for x in found.tensors}
        lost = [x for x in self.kernels.graphs.externals if id(x) not in known]
        # What the function makes for itself is another object at each evaluation.
        self.reach = None if any(x.requires_grad or id(x) in used for x in lost) else found


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
