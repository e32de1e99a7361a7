"""A right-hand side, compiled for one shape and dtype of the state; and those compiled so far."""

from __future__ import annotations

import ctypes
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import UntraceableError
from ...graph import Kernels
from ...graph import kernels as trace_kernels
from ...problem import ODEProblem
from ..eager.rhs import Rhs
from . import toolchain
from .emit import emit
from .lang.machine import Loaded
from .reach import Reach, reach

log = logging.getLogger("pydiffeqflux")

#: How many compiled models are kept in memory.
KEPT = 256
#: The kernels that are compiled together, by what a solve asks for.
EXPLICIT = ("f", "vjp", "vjp_y")


@dataclass
class Model:
    """The kernels of one right-hand side for states of one shape.

    Attributes:
        traced: the programs, and where each tensor lies in the buffers ``p``, ``c``, ``i``.
        places: for each tensor that the function reaches for, its place in the walk of ``reach``.
        work: how many numbers the kernels need to work in.
    """

    traced: Kernels
    places: tuple[int, ...]
    single: bool
    work: int = 1
    #: Steps that buffers had better have room for, from the solves so far.
    room: int = 32
    _code: dict[tuple[str, ...], Loaded] = field(default_factory=dict)
    _calls: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """How many of the tensors are differentiable: the first ones."""
        return self.traced.graphs.params

    def address(self, kernel: str, group: tuple[str, ...] = EXPLICIT) -> int:
        """The address of a kernel, compiled with its group when first asked for."""
        if group not in self._code:
            programs = [self.traced.program(name) for name in group]
            self.work = max(self.work, *(p.workspace for p in programs))
            self._code[group] = toolchain.kernels([emit(p) for p in programs], self.single)
        return self._code[group].address(kernel)

    def arguments(self, tensors: Sequence[Tensor]) -> Arguments:
        """The kernels' buffers, filled."""
        mine = [tensors[k] for k in self.places]
        dtype = self.traced.y.dtype
        flat: dict[str, list[Tensor]] = {"p": [], "c": [], "i": []}
        for x, slot in zip(mine, self.traced.arguments, strict=True):
            flat[slot.buffer].append(x.detach().reshape(-1))
        packed = {}
        for name, parts in flat.items():
            kind = torch.int64 if name == "i" else dtype
            whole = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(1, dtype=kind)
            packed[name] = whole if whole.dtype == kind else whole.to(kind)
        return Arguments(mine[: self.params], packed["p"], packed["c"], packed["i"])

    def evaluate(self, t: float, y: Tensor, given: Arguments, work: Tensor) -> Tensor:
        """``f(t, y)`` for a contiguous state."""
        call = self._calls.get("f")
        if call is None:
            kind = ctypes.c_float if self.single else ctypes.c_double
            call = ctypes.CFUNCTYPE(None, kind, *[ctypes.c_void_p] * 6)(self.address("f"))
            self._calls["f"] = call
        out = torch.empty_like(y)
        call(t, *(x.data_ptr() for x in (y, given.p, given.c, given.i, work, out)))
        return out


@dataclass
class Arguments:
    """The tensors that a right-hand side reaches for, at one solve."""

    #: The differentiable ones, as they are.
    params: list[Tensor]
    p: Tensor
    c: Tensor
    i: Tensor

    @property
    def addresses(self) -> tuple[int, int, int]:
        return self.p.data_ptr(), self.c.data_ptr(), self.i.data_ptr()


_models: OrderedDict[Any, tuple[Model | str, Reach]] = OrderedDict()


def model_of(problem: ODEProblem, found: Reach) -> Model | str:
    """The compiled model of a problem's function, traced where it has not been; or why there is none."""
    key = _key(problem, found)
    known = _models.get(key)
    if known is not None:
        _models.move_to_end(key)
        return known[0]
    model: Model | str
    try:
        model = _trace(problem, found)
    except UntraceableError as why:
        model = str(why)
    # The function may have changed by running (a counter of its calls): what it is now will be found again.
    found = reach(problem.func)
    _models[_key(problem, found)] = model, found
    while len(_models) > KEPT:
        _models.popitem(last=False)
    return model


def known(problem: ODEProblem, found: Reach) -> bool:
    """Whether this function has been traced (or tried) before."""
    return _key(problem, found) in _models


def _key(problem: ODEProblem, found: Reach) -> Any:
    y = problem.packed
    return tuple(found.facts), y.shape, y.dtype, problem.spec is None or repr(problem.spec), torch.get_default_dtype()


def _trace(problem: ODEProblem, found: Reach) -> Model:
    began = time.perf_counter()
    y = problem.packed.detach()
    rhs = Rhs(problem.func, problem.spec, y)
    traced = trace_kernels(lambda t, x: rhs.evaluate(t, x), rhs.time(problem.t0.value), y)
    places = {id(x): k for k, x in enumerate(found.tensors)}
    externals = traced.graphs.externals
    if not all(id(x) in places for x in externals):
        raise UntraceableError(
            "the right-hand side uses a tensor that could not be found among its attributes, closure and globals"
        )
    log.info("traced the right-hand side in %.2f s", time.perf_counter() - began)
    return Model(traced, tuple(places[id(x)] for x in externals), y.dtype == torch.float32)


