"""Running a function with other tensors than the ones that it holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Instead(TorchFunctionMode):
    """Hands other tensors to torch's functions than the ones that were passed; by the identity of the latter.

    What is passed to an ``autograd.Function`` goes past it: :func:`depends_on` tells.
    """

    def __init__(self, others: dict[int, Tensor]):
        super().__init__()
        self.others = others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._replaced(args), **{k: self._replaced((v,))[0] for k, v in (kwargs or {}).items()})

    def _replaced(self, values: Any) -> Any:
        found = [
            self.others.get(id(v), v) if isinstance(v, Tensor) else self._replaced(v) if type(v) in (tuple, list) else v
            for v in values
        ]
        return tuple(found) if isinstance(values, tuple) else found


def origins_of(tensors: Iterable[Tensor]) -> set[Any]:
    """The nodes of autograd's graph that those of the tensors come from that were computed."""
    return {x.grad_fn for x in tensors if x.grad_fn is not None}


def depends_on(out: Tensor, origins: set[Any]) -> bool:
    """Whether autograd's graph leads from ``out`` to one of the nodes."""
    stack, visited = [out.grad_fn], set()
    while stack and origins:
        node = stack.pop()
        if node in origins:
            return True
        if node is not None and node not in visited:
            visited.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return False
