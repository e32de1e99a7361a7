"""A right-hand side, compiled for one shape and dtype of the state; and those compiled so far."""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import time
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...errors import PyDiffEqFluxError, UntraceableError
from ...graph import Kernels
from ...graph import kernels as trace_kernels
from ...graph.program import Loop, Product, Reduction
from ...graph.reach import Reach, Reached, reach
from ...graph.value import contiguous_strides
from ...problem import ODEProblem
from ..anchor import anchor_of
from ..backend import SolveOptions
from ..common.rhs import Rhs
from . import toolchain
from .emit import emit
from .lang.machine import Loaded
from .plan import Plans
from .products import wants_blas
from .row import row_of

log = logging.getLogger("pydiffeqflux")

#: How many compiled models are kept in memory.
KEPT = 256
#: Tensors up to which torch's own way to put them next to each other takes longer than one copy after the other.
FEW = 16
#: The kernels that are compiled together, by what a solve asks for.
EXPLICIT = ("f", "vjp", "vjp_y")


@dataclass
class Model:
    """The kernels of one right-hand side for states of one shape.

    Attributes:
        traced: the programs, and where each tensor lies in the buffers ``p``, ``c``, ``i``.
        places: for each tensor that the function reaches for, its place in the walk of ``reach``; or the tensor itself,
            where the function makes it anew at every call.
        work: how many numbers the kernels need to work in.
    """

    traced: Kernels
    places: tuple[int | Tensor, ...]
    single: bool
    work: int = 1
    #: Steps that buffers had better have room for, from the solves so far.
    room: int = 32
    #: Of a model of one row: whether it holds for all of them (see ``rows.agrees``).
    rows_agree: bool | None = None
    #: Whether evaluating the function leaves everything that it reaches as it was (but for tensors' values).
    pure: bool = True
    #: Models of as many threads' parts of the rows; None where rows are not to be parted (see ``shards``).
    parts: dict[int, Model | None] = field(default_factory=dict)
    #: Second derivatives, or why there are none; made when first asked for (see ``second``).
    second: Any = None
    plans: Plans = field(default_factory=Plans)
    _code: dict[tuple[str, ...], Loaded] = field(default_factory=dict)
    _addresses: dict[str, int] = field(default_factory=dict)
    _calls: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> int:
        """How many of the tensors are differentiable: the first ones."""
        return self.traced.graphs.params

    def __post_init__(self) -> None:
        #: Shape, strides and size of each parameter's gradient, one after the other.
        slots = self.traced.arguments[: self.params]
        self.shapes = [(s.shape, contiguous_strides(s.shape), s.size) for s in slots]

    def address(self, kernel: str, group: tuple[str, ...] = EXPLICIT) -> int:
        """The address of a kernel, compiled with its group when first asked for."""
        known = self._addresses.get(kernel)
        if known is not None:
            return known
        if group not in self._code:
            sources, work = zip(*(emit(self.traced.program(name)) for name in group), strict=True)
            self.work = max(self.work, *work)
            self._code[group] = toolchain.kernels(sources, self.single)
        for name in group:
            self._addresses[name] = self._code[group].address(name)
        return self._addresses[kernel]

    @functools.cached_property
    def flops(self) -> int:
        """Multiplications and additions of one evaluation's matrix products, and four times those of sums.

        A convolution is such a sum: eager torch has a library for it, compiled loops have none.
        """
        total = 0
        for s in self.traced.program("f").statements:
            if isinstance(s, Product):
                total += 2 * s.batch * s.rows * s.inner * s.columns
            elif isinstance(s, Reduction):
                total += 8 * math.prod(n for _, n in (*s.over, *s.across))
        return total

    @functools.cached_property
    def by_blas(self) -> bool:
        """Whether the BLAS library takes part in an evaluation: it has threads of its own."""
        return any(isinstance(s, Product) and wants_blas(s) for s in self.traced.program("f").statements)

    @functools.cached_property
    def operations(self) -> int:
        """How much work one evaluation is: passes through loops, eight of a product's to one of a formula's."""
        total = self.flops // 8
        for s in self.traced.program("f").statements:
            if isinstance(s, Loop):
                total += math.prod(n for _, n in s.over)
        return total

    def params_among(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The differentiable ones."""
        return [tensors[k] if isinstance(k, int) else k for k in self.places[: self.params]]

    def arguments(self, tensors: Sequence[Tensor], *, kept: bool = True) -> Arguments:
        """The kernels' buffers, filled.

        Args:
            kept: they are to stay as they are after the solve, whatever becomes of the tensors.
        """
        mine = [tensors[k] if isinstance(k, int) else k for k in self.places]
        if not kept and len(mine) == 1:
            (x,), slot = mine, self.traced.arguments[0]
            if slot.kind == "float" and x.dtype is self.traced.y.dtype and x.is_contiguous():
                nothing = _NOTHING[x.dtype]
                return Arguments(mine, x, nothing, nothing) if self.params else Arguments([], nothing, x, nothing)
        dtype = self.traced.y.dtype
        params = mine[: self.params]
        nothing = _NOTHING[dtype]
        if self.params == len(mine):  # the usual case
            return Arguments(params, _flat(params, dtype), nothing, nothing)
        packed = {"p": params, "c": [], "i": []}
        for x, slot in zip(mine[self.params :], self.traced.arguments[self.params :], strict=True):
            packed[slot.buffer].append(x)
        return Arguments(params, *(_flat(packed[name], torch.int64 if name == "i" else dtype) for name in "pci"))

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


_NOTHING = {dtype: torch.empty(0, dtype=dtype) for dtype in (torch.float32, torch.float64, torch.int64)}


def _flat(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One vector of all their entries; without a graph where the caller records none."""
    if not tensors:
        return _NOTHING[dtype]
    if len(tensors) <= FEW and all([x.dtype is dtype and x.is_contiguous() for x in tensors]):
        flat = torch.empty(sum([x.numel() for x in tensors]), dtype=dtype)
        at, width = flat.data_ptr(), flat.element_size()
        for x in tensors:
            size = x.numel() * width
            ctypes.memmove(at, x.data_ptr(), size)
            at += size
        return flat
    parts = [x if x.dtype == dtype else x.to(dtype) for x in tensors]
    return torch._C._nn.flatten_dense_tensors(parts)


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


#: Models (or why there is none) by everything that decides what their functions compute, and the objects that are
#: part of that by identity.
_models: OrderedDict[Any, tuple[Model | str, list[Any]]] = OrderedDict()
#: The last walk of every function that is still alive, and the models that it led to.
_walks: weakref.WeakKeyDictionary[Any, Walked] = weakref.WeakKeyDictionary()


@dataclass
class Walked:
    """A walk of a function, good for as long as ``reach`` would find the same."""

    reach: Reach
    models: dict[Any, Model | str] = field(default_factory=dict)


def model_of(problem: ODEProblem) -> tuple[Model | str, list[Tensor]]:
    """The compiled model of a problem's function, traced where it has not been, and the tensors it reaches.

    In place of a model the reason why there is none.
    """
    state, found = state_of(problem), walked(problem.func)
    model = found.models.get(state)
    if model is None:
        model = _find(problem, found, state)
    return model, found.reach.tensors


def known(problem: ODEProblem, options: SolveOptions) -> bool:
    """Whether this function has been traced (or tried) before."""
    if options.per_sample:
        problem = row_of(problem)
    state, found = state_of(problem), walked(problem.func)
    return state in found.models or (tuple(found.reach.facts), state) in _models


def state_of(problem: ODEProblem) -> Any:
    """What a graph depends on besides the function."""
    y, spec = problem.packed, problem.spec
    if spec is None and type(problem.func) in _OWN:
        return y.shape, y.dtype, (), None, torch.get_default_dtype()
    called: list[type] = []
    func: Any = problem.func
    while func is not anchor_of(func):
        called.append(type(func))
        func = func.model
    return y.shape, y.dtype, tuple(called), None if spec is None else repr(spec), torch.get_default_dtype()


#: What users' functions are, mostly.
_OWN = (types.FunctionType, torch.nn.Sequential)


def walked(func: Any) -> Walked:
    """The walk of a function as it is now: the last one, or a new one."""
    anchor = anchor_of(func)
    try:
        found = _walks.get(anchor)
        if found is None or not found.reach.unchanged():
            found = _walks[anchor] = Walked(reach(anchor))
    except TypeError:  # nothing that a weak reference can be made of
        found = Walked(reach(anchor))
    return found


def _find(problem: ODEProblem, walked: Walked, state: Any) -> Model | str:
    """The model among those traced already, for a function of the same meaning; traced where there is none."""
    key = tuple(walked.reach.facts), state
    if key not in _models:
        found = _made(lambda: _trace(problem, walked.reach))
        # The function may have changed by running (a counter of its calls): what it is now will be found again.
        walked.reach = reach(anchor_of(problem.func))
        before, key = key, (tuple(walked.reach.facts), state)
        if isinstance(found, Model):
            found.pure = key == before
    walked.models[state] = model = remembered(key, walked.reach.held, lambda: found)
    return model


def remembered(key: Any, held: list[Any], make: Callable[[], Model | str]) -> Model | str:
    """What was made under this key, or is now; ``held`` are objects that the key compares by identity."""
    if key not in _models:
        _models[key] = _made(make), held
        while len(_models) > KEPT:
            _models.popitem(last=False)
    _models.move_to_end(key)
    return _models[key][0]


def _made(make: Callable[[], Model | str]) -> Model | str:
    try:
        return make()
    except UntraceableError as why:
        return str(why)


def traced_kernels(
    evaluate: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, first: Sequence[Tensor] = ()
) -> Kernels:
    """The programs of a function that has just been evaluated without an error.

    Raises:
        UntraceableError: it cannot be traced, for whatever reason (compiled modules, for one, refuse it).
    """
    try:
        return trace_kernels(evaluate, t, y, first)
    except PyDiffEqFluxError:
        raise
    except Exception as why:
        said = (str(why).splitlines() or [""])[0]
        raise UntraceableError(f"the right-hand side could not be traced ({type(why).__name__}: {said})") from why


def _trace(problem: ODEProblem, found: Reach) -> Model:
    began = time.perf_counter()
    y = problem.packed.detach()
    rhs = Rhs(problem.func, problem.spec, y)
    with torch.no_grad():
        rhs.evaluate(problem.t0.value, y)  # what is wrong with it is explained here, not in the middle of a trace
    traced = traced_kernels(lambda t, x: rhs.evaluate(t, x), rhs.time(problem.t0.value), y)
    for name in EXPLICIT:
        traced.program(name)  # an operator without a translation is found here
    known = {id(x): k for k, x in enumerate(found.tensors)}
    externals = traced.graphs.externals
    places = tuple(known.get(id(x), x) for x in externals)
    lost = [x for x in places if isinstance(x, Tensor)]
    if lost:
        with Reached() as seen, torch.no_grad():
            rhs.evaluate(problem.t0.value, y)
        if any(x.requires_grad or any(x is other for other in seen.tensors) for x in lost):
            raise UntraceableError(
                "the right-hand side uses a tensor that could not be found among its attributes, closure and globals"
            )
    log.info("traced the right-hand side in %.2f s", time.perf_counter() - began)
    model = Model(traced, places, y.dtype == torch.float32)
    _compare(model, rhs, problem, found)
    return model


def _compare(model: Model, rhs: Rhs, problem: ODEProblem, found: Reach) -> None:
    """Hold the machine code against the function, at the start and a little off it.

    For functions that do something which no trace shows (by way of NumPy, say) and go by what was traced only once.
    """
    y, t0, t1 = problem.packed.detach().contiguous(), problem.t0.value, problem.t1.value
    model.address("f")
    given = model.arguments([x.detach() for x in found.tensors])
    tol = 2e-4 if model.single else 1e-9
    for t, at in ((t0, y), (t0 + (t1 - t0) / 128, y * (1 + 1 / 128) + 1 / 128)):
        work = torch.empty(model.work, dtype=y.dtype)
        got = model.evaluate(t, at, given, work)
        with torch.no_grad():
            want = rhs.evaluate(t, at)
        scale = float(want.abs().nan_to_num(0.0, 0.0).max())
        if not torch.allclose(got, want, rtol=tol, atol=tol * scale, equal_nan=True):
            raise UntraceableError(
                f"the right-hand side traced is not the one that runs: at t={t} torch has"
                f" {want.reshape(-1)[:4].tolist()}, the trace {got.reshape(-1)[:4].tolist()}; does it compute outside"
                f" torch, or draw random numbers?"
            )
