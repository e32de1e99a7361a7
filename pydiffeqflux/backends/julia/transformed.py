"""A solve inside ``torch.func``'s transforms: one autograd function of every tensor that it depends on.

``func`` holds tensors of the transforms that are active: wrapped by ``grad``, batched by ``vmap``. torch takes the
arguments of an ``autograd.Function`` out of their wrappings, level by level; what is left at the bottom are plain
tensors, and there, with no transform active, the equation is solved with those in the places of the others. A dimension
that ``vmap`` maps over joins the state on the way down, so that Julia solves once for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch
from torch._functorch.autograd_function import custom_function_call
from torch.overrides import TorchFunctionMode

from ...errors import GradientError, UnsupportedError
from ...instead import Instead
from ...problem import ODEProblem, SaveTimes
from ...solution import Solution
from ...state import StateSpec
from ...tracking import forwarding
from ..backend import SolveOptions

_FORWARD = (
    "backend='julia' inside forward mode (torch.func.jvp, jacfwd, hessian) does not exist: take torch.func.jacrev or"
    " grad, or solve with backend='torch' there."
)
_NO_SECOND = (
    "backend='julia' has no second derivative: differentiate twice with backend='torch' and sensealg=DiscreteAdjoint()."
)
_HIDDEN = (
    "backend='julia' inside torch.func's transforms: func passes a tensor that is differentiated or mapped over to an"
    " autograd.Function, where nothing can take its place; write it with torch's operators, or solve with"
    " backend='torch' there."
)

#: Solves a problem outside of all transforms.
Solve = Callable[[ODEProblem, SolveOptions], Solution]
#: Of each tensor the dimension that is mapped over.
Dims = tuple[int | None, ...]


class StandIn:
    """``func`` of a packed state, with tensors of ours in the places of those that it uses.

    Args:
        theirs, ours: the tensors that ``func`` passes to torch, and those to take instead.
        maps: along which dimensions of ours :func:`torch.func.vmap` runs, the innermost first.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        spec: StateSpec | None,
        theirs: Sequence[Tensor],
        ours: Sequence[Tensor],
        maps: Sequence[Dims],
    ):
        self.func, self.spec, self.maps = func, spec, tuple(maps)
        self.theirs, self.ours = list(theirs), list(ours)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        call: Callable[..., Any] = self._one
        for dims in self.maps:
            call = torch.func.vmap(call, in_dims=(None, 0, *dims))
        found: Tensor = call(t, y, *self.ours)
        return found

    def _one(self, t: Tensor, y: Tensor, *ours: Tensor) -> Any:
        with Instead({id(x): mine for x, mine in zip(self.theirs, ours, strict=True)}):
            out = self.func(t, y if self.spec is None else self.spec.unflatten(y))
        return out if self.spec is None else self.spec.flatten(out)


@dataclass
class Equation:
    """What is solved, but for the tensors: these come as ``(y0, *times, *theirs)``.

    Attributes:
        times: how many of the tensors are times: the start, the end, and the save times, where these are tensors.
        recording: some transform will ask for gradients.
        solution: the last one, and ``inputs`` its tensors; once it has been solved.
        joined: the equation of all samples together, where a transform maps over it; and along which dimensions.
    """

    problem: ODEProblem
    options: SolveOptions
    solve: Solve
    theirs: list[Tensor]
    times: int
    recording: bool
    maps: tuple[Dims, ...] = ()
    solution: Solution | None = None
    inputs: list[Tensor] = field(default_factory=list)
    joined: Equation | None = None

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Solve, with a graph of its own from ``inputs`` to the states where gradients are wanted."""
        self.inputs = [
            x.detach().requires_grad_(x.is_floating_point() and (self.recording or x.requires_grad)) for x in tensors
        ]
        y0, rest = self.inputs[0], self.inputs[1:]
        times, ours = rest[: self.times], rest[self.times :]
        given = iter(times)
        t0, t1 = (p.value if p.tensor is None else next(given) for p in (self.problem.t0, self.problem.t1))
        saves, options = self.options.saves, self.options
        if saves is not None and saves.tensor is not None:
            options = replace(options, saves=SaveTimes(saves.values, next(given)))
        func = StandIn(self.problem.func, self.problem.spec, self.theirs, ours, self.maps)
        with torch.enable_grad():
            self.solution = self.solve(ODEProblem(func, y0, (t0, t1)), options)
        return self.solution.ys.detach()

    def pull(self, g: Tensor, wanted: Sequence[bool]) -> list[Tensor]:
        """The gradients that are wanted, of the last solve."""
        assert self.solution is not None
        inputs = [x for x, w in zip(self.inputs, wanted, strict=True) if w]
        ys = self.solution.ys
        if not ys.requires_grad:
            return [torch.zeros_like(x) for x in inputs]
        found = torch.autograd.grad(ys, inputs, g, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found, strict=True)]


class _Solve(torch.autograd.Function):
    """``(equation, y0, *times, *theirs) -> ys``, time first."""

    @staticmethod
    def forward(equation: Equation, *tensors: Tensor) -> Tensor:
        return equation.run(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.equation, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[1:]
        found = iter(_Pull.apply(ctx.equation, wanted, grads[0], *ctx.saved_tensors))
        return (None, *(next(found) if w else None for w in wanted))

    @staticmethod
    def vmap(info: Any, in_dims: Any, equation: Equation, *tensors: Tensor) -> tuple[Tensor, int]:
        dims: Dims = in_dims[1:]
        if any(d is not None for d in dims[1 : 1 + equation.times]):
            raise UnsupportedError(
                "torch.func.vmap over times with backend='julia': all samples are solved over the same times; map over"
                " y0 and parameters only."
            )
        equation.joined = replace(equation, maps=(*equation.maps, dims[1 + equation.times :]), joined=None)
        y0 = _first(tensors[0], dims[0], info.batch_size)
        return _Solve.apply(equation.joined, y0, *tensors[1:]), 1  # behind the time


class _Pull(torch.autograd.Function):
    """``(equation, wanted, g, *tensors) -> gradients``, those that are wanted."""

    @staticmethod
    def forward(equation: Equation, wanted: Sequence[bool], g: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(equation.pull(g, wanted))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise GradientError(_NO_SECOND)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, equation: Equation, wanted: Sequence[bool], g: Tensor, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        to_ys, dims = in_dims[2], in_dims[3:]
        if all(d is None for d in dims):  # several gradients of one solve
            rows = g.movedim(to_ys, 0)
            each = [_Pull.apply(equation, wanted, row, *tensors) for row in rows]
            stacked = tuple(torch.stack(parts) for parts in zip(*each, strict=True))
            return stacked, (0,) * len(stacked)
        assert equation.joined is not None
        joined = equation.joined
        g = _first(g, to_ys, info.batch_size).movedim(0, 1)
        y0 = _first(tensors[0], dims[0], info.batch_size)
        tensors, dims = (y0, *tensors[1:]), (0, *dims[1:])
        mapped = [w and d is not None for w, d in zip(wanted, dims, strict=True)]
        alike = [w and d is None for w, d in zip(wanted, dims, strict=True)]
        found: dict[int, tuple[Tensor, int]] = {}
        places = [k for k, m in enumerate(mapped) if m]
        if places:
            for k, d in zip(places, _Pull.apply(joined, mapped, g, *tensors), strict=True):
                found[k] = d, dims[k]
        if any(alike):  # each sample has its own gradient of what they have in common
            each = []
            for row in range(info.batch_size):
                alone = torch.zeros_like(g)
                alone[:, row] = g[:, row]
                each.append(_Pull.apply(joined, alike, alone, *tensors))
            places = [k for k, a in enumerate(alike) if a]
            for k, parts in zip(places, zip(*each, strict=True), strict=True):
                found[k] = torch.stack(parts), 0
        order = sorted(found)
        return tuple(found[k][0] for k in order), tuple(found[k][1] for k in order)


def _first(x: Tensor, dim: int | None, size: int) -> Tensor:
    """With the mapped dimension in front."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


class _Used(TorchFunctionMode):
    """Remembers the tensors from outside that are passed to torch functions and concern a transform, or autograd."""

    def __init__(self, own: Sequence[Tensor]):
        super().__init__()
        self.found: dict[int, Tensor] = {}
        self._made: dict[int, Any] = {id(x): x for x in own}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        new = [x for x in _tensors((args, kwargs)) if id(x) not in self._made and _concerned(x)]
        if new and func is custom_function_call:
            raise UnsupportedError(_HIDDEN)
        self.found.update((id(x), x) for x in new)
        out = func(*args, **(kwargs or {}))
        self._made.update((id(x), x) for x in _tensors(out))
        return out


def _concerned(x: Tensor) -> bool:
    return x.requires_grad or functorch.is_functorch_wrapped_tensor(x)


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [x for value in values for x in _tensors(value)] if isinstance(values, tuple | list) else []


def solve_transformed(problem: ODEProblem, options: SolveOptions, solve: Solve) -> Solution:
    """Solve a problem inside ``torch.func.grad``, ``vjp``, ``jacrev`` and ``vmap``, in any order.

    Args:
        solve: solves a problem outside of all transforms.

    Raises:
        UnsupportedError: forward mode; something that cannot be joined.
    """
    layers = {layer.key() for layer in torch._C._functorch.get_interpreter_stack() or []}
    kind = torch._C._functorch.TransformType
    if forwarding() or kind.Jvp in layers or kind.Functionalize in layers:
        raise UnsupportedError(_FORWARD)
    if options.events or options.doses or any(isinstance(x, Tensor) and x.dim() for x in (options.rtol, options.atol)):
        raise UnsupportedError(
            "backend='julia' inside torch.func's transforms has no events, callbacks and tolerances by state: give the"
            " whole batch as y0, without vmap, and call backward(), or solve with backend='torch' there."
        )
    if options.per_sample:
        raise UnsupportedError(
            "per_sample=True inside torch.func's transforms does not exist on backend='julia': leave it out, as vmap"
            " has a batch anyway; or solve with backend='torch' there."
        )
    y0, spec, options = problem.packed, problem.spec, replace(options, dense=False)
    state: Any = y0 if spec is None else spec.unflatten(y0)
    t0 = torch.scalar_tensor(problem.t0.value, dtype=y0.dtype)
    with torch.no_grad(), _Used([y0, t0, *_tensors(state)]) as used:
        problem.func(t0, state)
    saves = options.saves
    times = [x for x in (problem.t0.tensor, problem.t1.tensor, saves and saves.tensor) if isinstance(x, Tensor)]
    theirs = list(used.found.values())
    equation = Equation(problem, options, solve, theirs, len(times), recording=kind.Grad in layers)
    ys = _Solve.apply(equation, y0, *times, *theirs)
    while equation.joined is not None:
        equation = equation.joined
    assert equation.solution is not None
    ts = equation.solution.ts if saves is None or saves.tensor is None else saves.tensor.double()
    return replace(equation.solution, ts=ts, ys=ys if spec is None else spec.unflatten(ys))
