"""Finding every tensor whose gradient a right-hand side needs, wherever it keeps it.

A continuous adjoint has to name the tensors that it differentiates with respect to. Modules list theirs;
closures and plain tensors are found by evaluating the function once and walking the autograd graph of the
result back to where it entered: to leaves, and to tensors that were computed before (``w = softplus(raw)``
outside the function), at which the walk stops, so that their history is not differentiated at every step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...tracking import newest_node


def captured_tensors(func: Callable[..., Any], evaluate: Callable[[], Tensor], own: Iterable[Tensor]) -> list[Tensor]:
    """The tensors requiring gradients that ``evaluate()`` depends on besides ``own``.

    Args:
        func: the user's function, searched for modules and tensors that a branch not taken now may use.
        evaluate: evaluates it once (with gradients enabled) and returns its packed result.
        own: the arguments of that evaluation, which are not to be listed.
    """
    mine = {id(x) for x in own}
    found: dict[int, Tensor] = {}
    with torch.enable_grad():
        before = newest_node()
        with _Arguments() as seen:
            result = evaluate()
    for tensor in _inputs_of(result, seen.tensors, before):
        found.setdefault(id(tensor), tensor)
    for tensor in held_by(func):
        found.setdefault(id(tensor), tensor)
    return [t for key, t in found.items() if key not in mine]


def partial(params: Sequence[Tensor], totals: Sequence[Tensor]) -> list[Tensor]:
    """The derivatives in ``params`` alone, of ``totals`` that hold what one has through another that it was made of.

    Autograd differentiates along everything that lies between: where both ``a`` and ``b = a + 1`` were captured, the
    derivative in ``a`` contains that of ``b``, which whoever goes on from ``b`` would add a second time.
    """
    if all(x.grad_fn is None for x in params):
        return list(totals)
    found = list(totals)
    # The latest first: none of them was made of what follows.
    order = sorted(range(len(params)), key=lambda i: _age(params[i]), reverse=True)
    for place, i in enumerate(order):
        later = [j for j in order[:place] if params[j].grad_fn is not None]
        if later:
            outs, seeds = [params[j] for j in later], [found[j].to(params[j]) for j in later]
            (through,) = torch.autograd.grad(outs, params[i], seeds, retain_graph=True, allow_unused=True)
            if through is not None:
                found[i] = found[i] - through
    return found


def _age(x: Tensor) -> int:
    return -1 if x.grad_fn is None else int(x.grad_fn._sequence_nr())


class _Arguments(TorchFunctionMode):
    """Remembers every tensor with a history that is passed to a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in _tensors_in((args, kwargs)):
            if value.requires_grad and not value.is_leaf:
                self.tensors[id(value)] = value
        return func(*args, **(kwargs or {}))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _inputs_of(result: Tensor, candidates: dict[int, Tensor], before: int) -> list[Tensor]:
    """Leaves, and tensors older than the evaluation, at which ``result``'s graph ends."""
    older = {}
    node: Any
    for tensor in candidates.values():
        node = tensor.grad_fn
        if node is not None and node._sequence_nr() < before:
            older[(node, tensor.output_nr)] = tensor
    ends: dict[int, Tensor] = {}
    visited = set()
    stack: list[tuple[Any, int]] = [(result.grad_fn, result.output_nr)]
    while stack:
        node, number = stack.pop()
        if node is None or (node, number) in visited:
            continue
        visited.add((node, number))
        if (node, number) in older:
            tensor = older[(node, number)]
            ends.setdefault(id(tensor), tensor)
        elif hasattr(node, "variable"):
            ends.setdefault(id(node.variable), node.variable)
        else:
            stack.extend(node.next_functions)
    return list(ends.values())


def held_by(func: Any) -> list[Tensor]:
    """Parameters of the modules, and leaf tensors, that a callable holds on to."""
    found: dict[int, Tensor] = {}
    visited: set[int] = set()

    def look(value: Any, depth: int) -> None:
        if depth > 6 or id(value) in visited:
            return
        visited.add(id(value))
        if isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                found.setdefault(id(value), value)
        elif isinstance(value, nn.Module):
            for parameter in value.parameters():
                if parameter.requires_grad:
                    found.setdefault(id(parameter), parameter)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                look(part, depth + 1)
        elif isinstance(value, tuple | list):
            for part in value:
                look(part, depth + 1)
        elif isinstance(value, dict):
            for part in value.values():
                look(part, depth + 1)
        elif is_dataclass(value) and not isinstance(value, type):
            for f in fields(value):
                look(getattr(value, f.name), depth + 1)
        elif inspect.ismethod(value):
            look(value.__self__, depth + 1)
            look(value.__func__, depth + 1)
        elif inspect.isfunction(value):
            for cell in value.__closure__ or ():
                try:
                    look(cell.cell_contents, depth + 1)
                except ValueError:  # a cell that is not filled yet
                    continue
            for default in (value.__defaults__ or ()) + tuple((value.__kwdefaults__ or {}).values()):
                look(default, depth + 1)

    look(func, 0)
    return list(found.values())
