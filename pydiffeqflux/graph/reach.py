"""What a right-hand side can reach: its tensors, and everything else that decides what it computes.

A traced model holds for as long as the function would be traced to the same graph. Tensors are arguments of the graph
and may change freely, also for other tensors of the same shape in the same places. All the rest (numbers, flags, the
code itself) is part of the graph and is compared at every solve. So a function made anew in each iteration, with other
tensors in its closure, is the same model, and one whose coefficient has changed is another.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

#: What every module has in its ``__dict__`` and does not decide what it computes.
_MACHINERY = frozenset(vars(nn.Module())) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
_DEPTH = 12
#: Packages that are taken to stay as they are.
_LIBRARIES = frozenset(("torch", "numpy", "scipy", "pydiffeqflux")) | sys.stdlib_module_names - {"__main__"}


@dataclass
class Reach:
    """Everything that was found, in the order of a fixed walk."""

    tensors: list[Tensor] = field(default_factory=list)
    #: What has to be equal for the graph to be the same.
    facts: list[Any] = field(default_factory=list)
    #: Objects that were compared by identity, which must not be freed while the facts are kept.
    held: list[Any] = field(default_factory=list)
    #: Every container that was walked, with what it held: keys (of a list its length), and values.
    inside: list[tuple[Any, Any, tuple[Any, ...]]] = field(default_factory=list)
    cells: list[tuple[Any, Any]] = field(default_factory=list)
    names: list[tuple[Mapping[str, Any], str, Any]] = field(default_factory=list)
    #: False where something can change that ``inside``, ``cells`` and ``names`` do not show.
    repeatable: bool = True

    def __post_init__(self) -> None:
        self._signs: list[Any] = []

    def finish(self) -> Reach:
        self._signs = [(x.requires_grad, x.dtype, x.shape) for x in self.tensors]
        return self

    def unchanged(self) -> bool:
        """Whether walking again would find the same objects in the same places: a tenth of the walk's time.

        Objects are compared by identity: an equal tensor is another one, and 1 and 1.0 trace to different graphs.
        """
        if not self.repeatable:
            return False
        same = operator.is_
        for now, keys, values in self.inside:
            if not values and not now:  # most of a module's containers
                continue
            if type(now) is list:
                if len(now) != keys or not all(map(same, now, values)):
                    return False
            elif len(now) != len(values) or not (all(map(same, now.values(), values)) and tuple(now) == keys):
                return False
        try:
            return (
                all(cell.cell_contents is then for cell, then in self.cells)
                and all(space.get(name) is then for space, name, then in self.names)
                and [(x.requires_grad, x.dtype, x.shape) for x in self.tensors] == self._signs
            )
        except ValueError:  # a cell has been emptied
            return False


def reach(func: Callable[..., Any]) -> Reach:
    """Walk everything that ``func`` holds on to, or finds by name."""
    found = Reach()
    _Walk(found).look(func, 0)
    return found.finish()


class Reached(TorchFunctionMode):
    """Remembers the tensors that are passed to torch functions: what an evaluation uses, wherever it comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            several = value if isinstance(value, tuple | list) else (value,)
            self.tensors += [x for x in several if isinstance(x, Tensor)]
        return func(*args, **(kwargs or {}))


class _Walk:
    def __init__(self, found: Reach):
        self.found = found
        self.tensors, self.facts = found.tensors, found.facts
        self.seen: dict[int, int] = {}

    def look(self, x: Any, depth: int) -> None:
        if isinstance(x, _PLAIN):
            self.facts += (type(x), x)  # 1, 1.0 and True are equal, and trace to different graphs
            return
        key = id(x)
        before = self.seen.get(key)
        if before is not None:
            self.facts.append(before)
            return
        self.seen[key] = len(self.seen)
        if isinstance(x, Tensor):
            self.tensors.append(x)
            self.facts.append((x.shape, x.dtype, x.requires_grad, x.device))
        elif isinstance(x, nn.Module):
            self._module(x, depth)
        elif isinstance(x, types.FunctionType):
            self._function(x, depth)
        elif isinstance(x, types.MethodType):
            self.look(x.__func__, depth)
            self.look(x.__self__, depth)
        elif depth > _DEPTH or isinstance(x, type | types.ModuleType | types.BuiltinFunctionType):
            self._identity(x)
        elif isinstance(x, tuple | list):
            self.facts.append((type(x), len(x)))
            if isinstance(x, list):
                self.found.inside.append((x, len(x), tuple(x)))
                self.found.repeatable &= type(x) is list
            for item in x:
                self.look(item, depth + 1)
        elif isinstance(x, dict):
            self._pairs(x, depth)
        elif isinstance(x, functools.partial):
            for part in (x.func, x.args, x.keywords):
                self.look(part, depth + 1)
        elif isinstance(x, np.ndarray):
            self.facts.append((x.shape, str(x.dtype), x.tobytes()))
            self.found.repeatable = False
        elif isinstance(x, np.generic):
            self.facts.append(x.item())
        else:
            self._object(x, depth)

    def _identity(self, x: Any) -> None:
        self.facts.append(id(x))
        self.found.held.append(x)

    def _inside(self, x: dict[Any, Any]) -> None:
        if x:
            self.found.inside.append((x, tuple(x), tuple(x.values())))
        else:
            self.found.inside.append((x, (), ()))

    def _pairs(self, x: dict[Any, Any], depth: int) -> None:
        self._inside(x)
        for key, value in x.items():
            if isinstance(key, _PLAIN):
                self.facts.append(key)
            else:
                self._identity(key)
            self.look(value, depth + 1)

    def _module(self, x: nn.Module, depth: int) -> None:
        kind = type(x)
        self._class(kind, depth)
        inside = x.__dict__
        self._inside(inside)
        for group in ("_parameters", "_buffers", "_modules"):
            self._inside(inside[group])
            for name, value in inside[group].items():
                self.facts.append(name)
                self.look(value, depth + 1)
        for name, value in inside.items():
            if name not in _MACHINERY:
                self.facts.append(name)
                self.look(value, depth + 1)
        for name in _HOOKS:
            self._pairs(inside[name], depth)

    def _object(self, x: Any, depth: int) -> None:
        self._class(type(x), depth)
        inside, slots = getattr(x, "__dict__", None), _slots(type(x))
        if inside is None and not slots:
            self._identity(x)
            return
        if inside is not None:
            self._pairs(inside, depth)
        for name in slots:
            self.facts.append(name)
            self.look(getattr(x, name, None), depth + 1)
            self.found.repeatable = False

    def _class(self, kind: type, depth: int) -> None:
        self._identity(kind)
        if _library(kind.__module__):
            return
        for base in inspect.getmro(kind):
            if _library(base.__module__) or base.__module__ == "builtins":
                continue
            for name, function in vars(base).items():
                if isinstance(function, types.FunctionType):
                    self.found.names.append((vars(base), name, function))
                    self._identity(function.__code__)
                    self._names(function, depth)

    def _function(self, x: types.FunctionType, depth: int) -> None:
        self._identity(x.__code__)
        for cell in x.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self.found.cells.append((cell, content))
            self.look(content, depth + 1)
        for default in (x.__defaults__, x.__kwdefaults__):
            if default:
                self.look(default, depth + 1)
        self._names(x, depth)

    def _names(self, function: types.FunctionType, depth: int) -> None:
        """The globals that a function mentions, also those of other modules; libraries are taken to stay the same."""
        if not _library(function.__module__):
            mentioned = _mentioned(function.__code__)
            self._space(function.__globals__, mentioned, depth)

    def _space(self, space: dict[str, Any], mentioned: tuple[str, ...], depth: int) -> None:
        for name in mentioned:
            if name not in space:
                continue
            value = space[name]
            self.found.names.append((space, name, value))
            if isinstance(value, types.ModuleType):
                if not _library(value.__name__) and id(value) not in self.seen:
                    self.seen[id(value)] = len(self.seen)
                    self._space(vars(value), mentioned, depth + 1)
            elif not isinstance(value, type):
                self.look(value, depth + 1)


def _library(module: str | None) -> bool:
    return bool(module) and str(module).partition(".")[0] in _LIBRARIES


def _slots(kind: type) -> tuple[str, ...]:
    """The names of a class's slots; an object of the standard library's or torch's is taken as it is."""
    if _library(kind.__module__) or kind.__module__ == "builtins":
        return ()
    named = [vars(base).get("__slots__", ()) for base in inspect.getmro(kind)]
    each = [x for names in named for x in ((names,) if isinstance(names, str) else names)]
    return tuple(x for x in each if x not in ("__dict__", "__weakref__"))


@functools.lru_cache(maxsize=1024)
def _mentioned(code: types.CodeType) -> tuple[str, ...]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_mentioned(constant))
    return tuple(names)
