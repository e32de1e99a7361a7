"""A large batch in joint mode, its rows shared among threads: torch's, ``torch.get_num_threads()``.

Each thread solves a part of the rows, by kernels made for as many; of the others it only needs their part of the
error's norm, once a step (see ``loops.meeting``). Going back needs nothing of the others. That rows do not depend on
each other is read off the function's graph (``graph.separate``).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import ShapeError
from ...graph.separate import separate
from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import DiscreteAdjoint, SenseAlg
from ...solution import Solution, Stats, Status
from ..backend import SolveOptions
from .again import states_again
from .forward import Forward
from .loops import layout as at
from .loops.meeting import LINE
from .model import Model, model_of
from .observed import Observation, differentiable_gradients, gradients, node
from .plan import place, zeros

#: Operations of one evaluation from which on threads share it (see ``Model.operations``): below, meeting takes longer
#: than they save (``python benchmarks/compiled_scaling.py --out DIR``).
MANY = 50_000

_T = TypeVar("_T")


@functools.cache
def _give_way() -> tuple[Any, int]:
    """The system's function that lets other threads run, and its address."""
    windows = sys.platform == "win32"
    library = ctypes.CDLL("kernel32" if windows else None)
    found = library.SwitchToThread if windows else library.sched_yield
    address = ctypes.cast(found, ctypes.c_void_p).value
    assert address is not None
    return found, address


class Meeting:
    """Where the threads of one solve meet."""

    def __init__(self, count: int):
        self.count = count
        self._memory = zeros("q", 3 * LINE * count)

    def join(self, ints: array[Any], shard: int) -> None:
        """Tell a loop, by its integers, where to meet, and as whom."""
        ints[at.SHARDS], ints[at.SHARD] = self.count, shard
        ints[at.MEETING], ints[at.GIVE_WAY] = place(self._memory), _give_way()[1]

    def leave(self, shard: int) -> None:
        """Never keep the others waiting again: this thread has failed."""
        numbers = array("d", [float("nan")] * 2 * LINE)
        start = 8 * LINE * (self.count + 2 * shard)
        memoryview(self._memory).cast("B")[start : start + 8 * len(numbers)] = memoryview(numbers).cast("B")
        self._memory[LINE * shard] = 1 << 62


def part_of(
    problem: ODEProblem, method: Method, options: SolveOptions, sensealg: SenseAlg | None, model: Model
) -> Model | None:
    """The model of one thread's part of the rows; None where one thread had better take them all."""
    count, packed = torch.get_num_threads(), problem.packed
    if count == 1 or model.operations < MANY or model.by_blas:
        return None
    rows = packed.shape[0] if packed.dim() else 0
    known = (
        problem.spec is None and rows % count == 0 and rows // count >= 2 and not method.implicit and not options.dense
        and (options.saves is not None or options.unsaved == "end")
        and not isinstance(options.rtol, Tensor) and not isinstance(options.atol, Tensor)
        and (sensealg is None or (isinstance(sensealg, DiscreteAdjoint) and sensealg.checkpoints is None))
    )  # fmt: skip
    times = (problem.t0.tensor, problem.t1.tensor, None if options.saves is None else options.saves.tensor)
    if not known or any(x is not None and x.requires_grad for x in times):
        return None
    if count not in model.parts:
        model.parts[count] = _part(problem, model, rows, rows // count)
    return model.parts[count]


def _part(problem: ODEProblem, model: Model, rows: int, fewer: int) -> Model | None:
    try:
        part, _ = model_of(_shard(problem, 0, fewer))
    except (ShapeError, RuntimeError):  # a function of so many rows and no others
        return None
    if not isinstance(part, Model) or len(part.places) != len(model.places):
        return None
    places = zip(model.places, part.places, strict=True)
    if any(mine != other for mine, other in places if not isinstance(mine, Tensor)):
        return None
    alike = separate(model.traced.graphs, part.traced.graphs, rows, fewer)
    return part if alike else None


def _shard(problem: ODEProblem, shard: int, rows: int) -> ODEProblem:
    y0 = problem.packed.detach()[shard * rows : (shard + 1) * rows]
    return ODEProblem(problem.func, y0, (problem.t0.value, problem.t1.value))


def _together(work: Callable[[int], _T], count: int) -> list[_T]:
    """``work(shard)`` for every shard, each by a thread of its own, the first by this one."""

    def quietly(shard: int) -> _T:
        with torch.no_grad():
            return work(shard)

    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(quietly, shard) for shard in range(1, count)]
        first = quietly(0)
        return [first, *(other.result() for other in others)]


def solve(
    problem: ODEProblem, method: Method, options: SolveOptions, part: Model, tensors: Sequence[Tensor],
    sensealg: SenseAlg | None, graph: bool,
) -> Solution | None:  # fmt: skip
    """The solution; None where it did not reach its end: what is to be said about that, one thread finds out."""
    rows = part.traced.y.shape[0]
    count = len(problem.packed) // rows
    with torch.no_grad():
        given, meeting = part.arguments(tensors), Meeting(count)
    shards = [_shard(problem, shard, rows) for shard in range(count)]
    plan = part.plans.get(shards[0], method, options)
    runs = [Forward(shard, method, options, plan, part, given, graph) for shard in shards]
    for name in ("f", "vjp"):
        part.address(name)  # compiled here, once

    def run(shard: int) -> None:
        try:
            runs[shard].run(shards[shard].packed.contiguous(), functools.partial(meeting.join, shard=shard))
        except BaseException:
            meeting.leave(shard)
            raise

    _together(run, count)
    first = runs[0]
    if any(not run.status.ok for run in runs):
        return None
    saved = options.saves is not None
    states = [run.states[: run.saved] if saved else run.final.clone()[None] for run in runs]
    if not first.table.adaptive and not all(bool(torch.isfinite(x[-1]).all()) for x in states):
        return None
    ys = torch.cat(states, 1)
    if graph:
        seen = Shards(runs, states, saved, lambda: states_again(problem, method, options, sensealg, rows=False))
        ys = _Shards.apply(seen, ys, problem.packed, *given.params)
    ts = torch.tensor([first.t], dtype=torch.float64)
    if options.saves is not None:
        ts = plan.saves.clone() if options.saves.tensor is None else options.saves.tensor.double()
    stats = Stats(nf=first.nf, naccept=first.accepted, nreject=first.rejected)
    return Solution(ts, ys.view(len(ys), *problem.packed.shape), stats, Status.SUCCESS, [])


@dataclass
class Shards:
    """The parts of one solve, and the states ``(count, n)`` that each returned."""

    runs: list[Forward]
    states: list[Tensor]
    saved: bool
    again: Callable[[], Tensor]


class _Shards(torch.autograd.Function):
    """``(y0, *params) -> rows``."""

    @staticmethod
    def forward(ctx: Any, seen: Shards, rows: Tensor, *inputs: Tensor) -> Tensor:
        ctx.seen = seen
        ctx.save_for_backward(*inputs)
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seen, wanted = ctx.seen, ctx.needs_input_grad[2:]
        y0, *params = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, *differentiable_gradients(seen.again, ctx.saved_tensors, wanted, grads[0])
        starts = y0.split([len(run.problem.packed) for run in seen.runs])
        seeds = grads[0].split([run.problem.packed.numel() for run in seen.runs], 1)

        def back(shard: int) -> list[Tensor | None]:
            run = seen.runs[shard]
            where, thetas = (run.where, run.thetas) if seen.saved else node(run.accepted)
            part = Observation(run, seen.states[shard], where, thetas, seen.saved, seen.again)
            inputs = (starts[shard], None, None, None, *params)
            needs = (wanted[0], False, False, False, *wanted[1:])
            found = gradients(part, inputs, needs, seeds[shard].contiguous())
            return [found[0], *found[4:]]

        first, *others = zip(*_together(back, len(seen.runs)), strict=True)
        return None, None, _joined(first), *map(_sum, others)


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    found = [x for x in parts if x is not None]
    return torch.cat(found) if found else None


def _sum(parts: Iterable[Tensor | None]) -> Tensor | None:
    """In the order of the shards: the same from run to run."""
    total: Tensor | None = None
    for x in parts:
        if x is not None:
            total = x if total is None else total + x
    return total

