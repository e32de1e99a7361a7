"""Tracing once for many solves, and noticing when that would be wrong.

A trace holds what Python decided while it was made: numbers, branches, which tensors were reached for. While nothing
that the function can reach has changed (see ``reach``), it is good. Otherwise the function is run once more, eagerly,
and has to reach for the same tensors; whoever uses the trace compares its value at that point, too
(:func:`agree`). What fails is traced anew.

A function that is made anew for every solve (with this iteration's tensors in its closure) has the trace of the one
before it: what decides about that is everything that it reaches, its tensors' places and shapes, not their values.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
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


@dataclass(eq=False)
class Traced:
    """A right-hand side's programs, and the tensors that it reaches for.

    Attributes:
        externals: as ``kernels.graphs`` has them, of this function.
        made: what an engine has made of it.
    """

    kernels: Kernels
    externals: Sequence[Tensor]
    made: Any = None

    @property
    def params(self) -> Sequence[Tensor]:
        """The tensors that gradients go to."""
        return self.externals[: self.kernels.graphs.params]


def agree(value: Tensor, start: Tensor) -> bool:
    """Whether the translated function's value is the function's to rounding."""
    tol = 2e-4 if start.dtype == torch.float32 else 1e-9
    scale = float(start.abs().max()) if start.numel() else 0.0
    return bool(torch.allclose(value, start, rtol=tol, atol=tol * max(scale, 1e-30), equal_nan=True))


class TraceCache:
    """The last few right-hand sides by function, shape and dtype, and by what functions mean."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, _Known] = OrderedDict()
        self._meanings: OrderedDict[Any, _Meaning] = OrderedDict()
        #: The last function that was asked for, what it was asked for, and what was found.
        self._last: tuple[Any, Any, _Known] | None = None

    def same(self, func: Callable[..., Any], y: Tensor, role: str = "") -> Traced | None:
        """The programs of ``func``, if it is the function that :meth:`get` was last called with, and has not changed.

        A loop asks for one function again and again: this is the quick way for it.
        """
        if self._last is None:
            return None
        of, asked, found = self._last
        if of() is not func or asked != (y.shape, y.dtype, role) or found.reach is None or not found.reach.unchanged():
            return None
        return found.traced

    def get(
        self, func: Callable[..., Any], evaluate: Evaluate, t: Tensor, y: Tensor, role: str = ""
    ) -> tuple[Traced, Tensor | None]:
        """The programs of ``func``, and its value at ``(t, y)`` for :func:`agree`; ``evaluate`` is ``func`` packed.

        There is no value where nothing that the function reaches has changed since the last one.

        Args:
            role: what ``evaluate`` makes of ``func``, where there are several things.

        Raises:
            UntraceableError: see :func:`pydiffeqflux.graph.trace.trace`.
        """
        t, y = t.detach(), y.detach()
        key = (_Same(func), tuple(y.shape), y.dtype, role)
        found = self._known.get(key)
        if found is not None and found.reach is not None and found.reach.unchanged():
            self._known.move_to_end(key)
            self._remember(func, y, role, found)
            return found.traced, None
        with torch.no_grad(), _Reached() as seen:
            start = evaluate(t, y)
        walk = reach(func)
        if found is None or not _reaches(found.traced, seen.tensors):
            found = self._find(walk, key[1:], evaluate, t, y, seen.tensors)
            # Run and traced, it is what it is now: what it changes by running (a counter) has been changed.
            walk = reach(func)
        found.look(walk, seen.tensors)
        if _by_identity(func) and key not in self._known:  # it may have been made for this solve alone
            weakref.finalize(func, self._known.pop, key, None).atexit = False
        self._known[key] = found
        self._known.move_to_end(key)
        _limit(self._known)
        return found.traced, start

    def _remember(self, func: Callable[..., Any], y: Tensor, role: str, found: _Known) -> None:
        with contextlib.suppress(TypeError):  # nothing can tell that such a function has ended
            self._last = weakref.ref(func), (y.shape, y.dtype, role), found

    def _find(self, walk: Reach, state: Any, evaluate: Evaluate, t: Tensor, y: Tensor, seen: set[int]) -> _Known:
        """By what the function means; traced where nothing known means that."""
        meaning = tuple(walk.facts), state, torch.get_default_dtype()
        known = self._meanings.get(meaning)
        if known is not None:
            traced = known.of(walk)
            if _reaches(traced, seen):
                self._meanings.move_to_end(meaning)
                return _Known(traced, meaning)
        made = kernels(evaluate, t, y)
        places = {id(x): k for k, x in enumerate(walk.tensors)}
        found = [places.get(id(x), x) for x in made.graphs.externals]
        if not _lost(found, seen):
            self._meanings[meaning] = _Meaning(made, found, walk.held)
            _limit(self._meanings)
        return _Known(Traced(made, made.graphs.externals), meaning)

    def forget(self, func: Callable[..., Any]) -> None:
        """Trace ``func`` anew next time."""
        same = _Same(func)
        self._last = None
        for key in [k for k in self._known if k[0] == same]:
            self._meanings.pop(self._known.pop(key).meaning, None)


@dataclass
class _Known:
    """A right-hand side's programs, and what it reached when its value was last compared."""

    traced: Traced
    meaning: Any
    reach: Reach | None = None

    def look(self, walk: Reach, used: set[int]) -> None:
        """Trust a walk of the function from now on, unless it misses a tensor that is used: then it proves nothing."""
        known = {id(x) for x in walk.tensors}
        self.reach = None if _lost([x for x in self.traced.externals if id(x) not in known], used) else walk


@dataclass
class _Meaning:
    """The programs of all functions that reach the same things, with tensors of the same shapes in the same places."""

    kernels: Kernels
    #: Of each external its place in the walk; or the tensor itself, which the function makes for itself.
    places: list[int | Tensor]
    #: What the walk compared by identity.
    held: list[Any]

    def of(self, walk: Reach) -> Traced:
        """With the tensors of another walk."""
        return Traced(self.kernels, [walk.tensors[k] if isinstance(k, int) else k for k in self.places])


def _lost(places: Sequence[int | Tensor], used: set[int]) -> bool:
    """Whether a tensor without a place comes from outside; one that the function makes for itself does not."""
    return any(x.requires_grad or id(x) in used for x in places if isinstance(x, Tensor))


def _limit(known: OrderedDict[Any, Any]) -> None:
    while len(known) > CAPACITY:
        known.popitem(last=False)


class _Same:
    """A function as a key: equal functions (a wrapper around the same module, say) in the same mode are the same."""

    def __init__(self, func: Callable[..., Any]):
        # What is only equal to itself is not to be kept alive.
        self.func: Any = weakref.ref(func) if _by_identity(func) else func
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


def _by_identity(func: Any) -> bool:
    """Whether nothing else is equal to it, and it can tell when it ends."""
    kind: Any = type(func)
    return kind.__eq__ is object.__eq__ and getattr(kind, "__weakrefoffset__", 0) != 0


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


def _reaches(known: Traced, seen: set[int]) -> bool:
    """Whether the tensors that gradients go to are still the ones that the function uses."""
    return all(id(x) in seen for x in known.params)
