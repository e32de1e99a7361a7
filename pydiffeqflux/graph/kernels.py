"""The programs of one right-hand side, and the flat buffers that they work on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UntraceableError
from .lower import Slot, lower, lower_jacobian
from .program import Program
from .record import Recording
from .table import kind_of
from .trace import Evaluate, Graphs, trace


@dataclass
class Kernels:
    """The programs of a right-hand side, each a function on flat buffers.

    ========  =============================================================  ==========================
    program   arguments                                                      writes
    ========  =============================================================  ==========================
    f         ``t, y, p, c, i``                                              ``out = f(t, y)``
    vjp       ``t, y, v, p, c, i``                                           ``gt, gy, gp = v df/d(t, y, p)``
    vjp_y     the same                                                       ``gy``
    jac       ``t, y, p, c, i``                                              ``J (n, n)``, ``ft``
    ========  =============================================================  ==========================

    ``p`` holds the differentiable tensors that the function reaches for, one after the other; ``c`` the other ones,
    ``i`` those of integers.
    """

    graphs: Graphs
    #: A state, for its shape and dtype.
    y: Tensor
    arguments: list[Slot] = field(init=False)
    sizes: dict[str, int] = field(init=False)
    _programs: dict[str, Program] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.sizes = {"t": 1, "y": self.y.numel(), "p": 0, "c": 0, "i": 0}
        self.arguments = []
        for k, x in enumerate(self.graphs.externals):
            kind = kind_of(x.dtype)
            if x.is_complex() or (kind == "float" and x.dtype != self.y.dtype and x.dim()):
                raise UntraceableError(
                    f"the right-hand side mixes {x.dtype} with a state of {self.y.dtype}: convert the one or the other,"
                    f" or solve it with backend='torch'."
                )
            buffer = "p" if k < self.graphs.params else "i" if kind == "int" else "c"
            self.arguments.append(Slot(buffer, self.sizes[buffer], tuple(x.shape), kind))
            self.sizes[buffer] += x.numel()

    def program(self, name: str) -> Program:
        """One of the programs, made when first asked for.

        Raises:
            UntraceableError: an operator has no row in the table.
        """
        if name not in self._programs:
            self._programs[name] = self._make(name)
        return self._programs[name]

    def _make(self, name: str) -> Program:
        n, shape = self.y.numel(), tuple(self.y.shape)
        value = self.graphs.shape
        m = math.prod(value)
        t, y, v = Slot("t", 0, ()), Slot("y", 0, shape), Slot("v", 0, value)
        inputs, dtype, externals = self.sizes, self.y.dtype, self.arguments
        if name == "f":
            out = Slot("out", 0, value)
            return lower(self.graphs.forward, "f", dtype, [t, y, *externals], [out], inputs, {"out": m})
        if name == "jac":
            return lower_jacobian(only(self.graphs, 0, 1), dtype, [t, y, *externals], shape, inputs)
        inputs = inputs | {"v": m}
        gt, gy = Slot("gt", 0, ()), Slot("gy", 0, shape)
        if name == "vjp_y":
            return lower(only(self.graphs, 1), name, dtype, [t, y, v, *externals], [gy], inputs, {"gy": n})
        assert name == "vjp", name
        outputs = {"gt": 1, "gy": n, "gp": self.sizes["p"]}
        gp = [Slot("gp", s.offset, s.shape) for s in externals[: self.graphs.params]]
        return lower(self.graphs.backward, name, dtype, [t, y, v, *externals], [gt, gy, *gp], inputs, outputs)

    def pack(self, tensors: Sequence[Tensor], buffer: str) -> Tensor:
        """The buffer ``p``, ``c`` or ``i``, filled from externals (in their order)."""
        dtype = torch.int64 if buffer == "i" else self.y.dtype
        flat = [
            x.detach().reshape(-1).to(self.y.device, dtype)
            for x, s in zip(tensors, self.arguments, strict=True)
            if s.buffer == buffer
        ]
        return torch.cat(flat) if flat else torch.zeros(0, dtype=dtype, device=self.y.device)


def only(graphs: Graphs, *results: int) -> Recording:
    """The backward graph with some of its results."""
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    found = graph.graph_copy(graphs.backward.graph, copies)
    assert isinstance(found, tuple | list)
    graph.output([found[r] for r in results])
    graph.eliminate_dead_code()
    return Recording(graph, graphs.backward.held)


def kernels(evaluate: Evaluate, t: Tensor, y: Tensor, first: Sequence[Tensor] = ()) -> Kernels:
    """Trace a right-hand side; see :func:`trace` for arguments and errors."""
    return Kernels(trace(evaluate, t, y, first), y.detach())
