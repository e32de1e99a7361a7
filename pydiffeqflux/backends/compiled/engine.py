"""``backend="compiled"``: the whole solve and its gradient in machine code."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError, UnsupportedError
from ...methods import Method
from ...problem import ODEProblem, TimePoint
from ...sensealg import DiscreteAdjoint, SenseAlg
from ...solution import Solution, Stats, Status
from ..backend import Problem, SolveOptions
from ..common.choose import choose_sensealg
from ..common.failure import failure
from . import shards
from .again import solve_again
from .coverage import uncovered
from .dense import DenseOutput, Part
from .forward import Checkpoints, Forward
from .model import Model, model_of
from .observed import Observation, node, nodes, observe
from .plain import solve as plain_solve
from .plan import Plan
from .row import row_of


class CompiledBackend:
    """``backend="compiled"``."""

    name = "compiled"

    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        """Solve.

        Raises:
            UnsupportedError: the solve, or the model, is not covered; the message says why.
        """
        began = time.perf_counter()
        if not isinstance(problem, ODEProblem):
            raise UnsupportedError(
                f"backend='compiled' cannot solve this: a {type(problem).__name__} is not compiled; backend='torch'"
                f" can."
            )
        why = uncovered(problem, method, options)
        if why is None:
            model, found = model_for(problem, method, options)
            if isinstance(model, Model):
                return run(problem, method, options, model, found, began)
            why = model
        raise UnsupportedError(f"backend='compiled' cannot solve this: {why}; backend='torch' can.")


def model_for(problem: ODEProblem, method: Method, options: SolveOptions) -> tuple[Model | str, list[Tensor]]:
    """The model that a solve needs (of one row, where rows are solved one by one), or why there is none."""
    if not options.per_sample:
        model, tensors = model_of(problem)
        if method.implicit and torch.is_grad_enabled() and isinstance(model, Model):
            from .second import second_of

            second = second_of(problem, model)
            if isinstance(second, str):
                return second, []
        if options.events and isinstance(model, Model):
            from .watch import uncovered as unwatched

            if (why := unwatched(problem, options.events)) is not None:
                return why, []
        return model, tensors
    from . import rows

    try:
        model, tensors = model_of(row_of(problem))
    except (ShapeError, RuntimeError) as why:
        return f"the function does not take a single row ({why})", []
    if isinstance(model, Model) and not rows.agrees(problem, model, model.arguments(tensors)):
        return "the function of a single row is not that of the batch's rows", []
    return model, tensors


def run(
    problem: ODEProblem, method: Method, options: SolveOptions, model: Model, tensors: Sequence[Tensor], began: float
) -> Solution:
    """Solve what is covered; ``tensors`` are those that the function reaches (see ``reach``)."""
    sensealg, reason = choose_sensealg(problem, method, options)
    if options.per_sample:
        return _run_rows(problem, method, options, model, tensors, began)
    if options.events or options.doses:
        return _run_jumps(problem, method, options, model, tensors, began)
    graph = _has_graph(problem, options, model.params_among(tensors), sensealg)
    part = shards.part_of(problem, method, options, sensealg, model)
    if part is not None:
        shared = shards.solve(problem, method, options, part, tensors, sensealg, graph)
        if shared is not None:
            describe(shared.stats, method, sensealg, reason, time.perf_counter() - began)
            return shared
    steps = options.saves is None and options.unsaved == "steps"
    plan = model.plans.get(problem, method, options)
    keep = graph or options.dense or steps
    if not keep:
        took = 0.0

        def finish(stats: Stats) -> None:
            describe(stats, method, sensealg, reason, took)

        plain = _plainly(problem, options, plan, model, tensors, finish)
        if plain is not None:
            took = time.perf_counter() - began
            return plain
    with torch.no_grad():
        given = model.arguments(tensors)  # where a plain solve failed, what is to be said about that is said below
    forward = Forward(problem, method, options, plan, model, given, keep)
    forward.dense = graph and not isinstance(sensealg, DiscreteAdjoint)
    if graph and not options.dense and not steps:
        forward.checkpoints = _checkpoints(sensealg)
    with torch.no_grad():
        forward.run(problem.packed.detach().contiguous())
    solution = _assemble(forward, sensealg, reason, began, graph)
    if options.throw and not solution.status.ok:
        span = problem.t0.value, problem.t1.value
        raise failure(solution.status, forward.message, float(solution.ts[-1]), span, method)
    return solution


def _plainly(
    problem: ODEProblem, options: SolveOptions, plan: Plan, model: Model, tensors: Sequence[Tensor],
    finish: Callable[[Stats], None],
) -> Solution | None:  # fmt: skip
    """A solve that keeps nothing."""
    if torch.is_grad_enabled():
        with torch.no_grad():
            return plain_solve(problem, options, plan, model, model.arguments(tensors, kept=False), finish)
    return plain_solve(problem, options, plan, model, model.arguments(tensors, kept=False), finish)


def _run_rows(
    problem: ODEProblem, method: Method, options: SolveOptions, model: Model, tensors: Sequence[Tensor], began: float
) -> Solution:
    from . import rows

    sensealg, reason = choose_sensealg(problem, method, options)
    with torch.no_grad():
        given = model.arguments(tensors)
    solution, message = rows.solve(
        problem, method, options, model, given, _has_graph(problem, options, given.params, sensealg), sensealg
    )
    describe(solution.stats, method, sensealg, reason, time.perf_counter() - began)
    if options.throw and not solution.status.ok:
        raise failure(solution.status, message, None, (problem.t0.value, problem.t1.value), method)
    return solution


def _run_jumps(
    problem: ODEProblem, method: Method, options: SolveOptions, model: Model, tensors: Sequence[Tensor], began: float
) -> Solution:
    from . import jumps

    sensealg, reason = choose_sensealg(problem, method, options)
    with torch.no_grad():
        given = model.arguments(tensors)
    solution, message = jumps.solve(problem, method, options, model, given, sensealg)
    describe(solution.stats, method, sensealg, reason, time.perf_counter() - began)
    if options.throw and not solution.status.ok:
        raise failure(solution.status, message, float(solution.ts[-1].detach()), problem.ends, method)
    return solution


def describe(stats: Stats, method: Method, sensealg: SenseAlg | None, reason: str, took: float) -> None:
    """Add what there is to say about every solve."""
    stats.backend, stats.method, stats.reason = CompiledBackend.name, str(method), reason
    stats.sensealg = "none" if sensealg is None else sensealg.name
    stats.time = took


def _has_graph(problem: ODEProblem, options: SolveOptions, params: Sequence[Tensor], sensealg: SenseAlg | None) -> bool:
    """Whether anything that the solution depends on wants a gradient."""
    if sensealg is None:
        return False
    for x in (problem.packed, problem.t0.tensor, problem.t1.tensor, _times(options), *params):
        if x is not None and x.requires_grad:
            return True
    return False


def _times(options: SolveOptions) -> Tensor | None:
    return None if options.saves is None else options.saves.tensor


def _checkpoints(sensealg: SenseAlg | None) -> Checkpoints | None:
    if not isinstance(sensealg, DiscreteAdjoint) or sensealg.checkpoints is None:
        return None
    return Checkpoints(sensealg.checkpoints if isinstance(sensealg.checkpoints, int) else None)


def _assemble(forward: Forward, sensealg: SenseAlg | None, reason: str, began: float, graph: bool) -> Solution:
    """The solution of a solve that has run: which states at which times, and how they depend on the inputs."""
    problem, options = forward.problem, forward.options
    seen = _observation(forward, sensealg)
    if not forward.table.adaptive and forward.status.ok and not bool(torch.isfinite(seen.rows[-1]).all()):
        forward.status, forward.message = Status.NON_FINITE, "the state became NaN or infinite"
        keep = max(int(torch.isfinite(seen.rows).all(1).to(torch.int8).argmin()), 1)
        seen.rows = seen.rows[:keep]
    rows = seen.rows
    if graph and isinstance(sensealg, DiscreteAdjoint):
        ys = observe(seen, problem.packed, _times(options))
    else:
        if graph and sensealg is not None:
            from . import continuous

            rows = continuous.observe(forward, sensealg, rows)
        ys = rows.view(len(rows), *problem.packed.shape)
    spec = problem.spec
    differentiable = graph and isinstance(sensealg, DiscreteAdjoint)
    dense = None
    if options.dense and forward.accepted:
        dense = DenseOutput([Part(forward, problem.packed)], differentiable, sensealg)
    states = ys if spec is None else spec.unflatten(ys)
    plan, count, method = forward.plan, len(rows), forward.method
    usual = options.saves is not None and options.saves.tensor is None and count == forward.saved
    ts = None if usual else _saved_times(forward, count, graph)
    found = forward.nf, forward.accepted, forward.rejected, forward.njac, time.perf_counter() - began

    def later(name: str) -> Any:
        if name == "ts":
            return plan.saves[:count].clone() if ts is None else ts
        nf, accepted, rejected, njac, took = found
        stats = Stats(nf=nf, naccept=accepted, nreject=rejected, njac=njac)
        describe(stats, method, sensealg, reason, took)
        return stats

    solution = Solution.later(states, forward.status, later)
    solution.dense = dense
    return solution


def _observation(forward: Forward, sensealg: SenseAlg | None) -> Observation:
    """The states to return."""
    options, n = forward.options, forward.problem.packed.numel()
    ended = not forward.status.ok
    if options.saves is not None:
        rows, where, thetas = forward.states, forward.where, forward.thetas
        if forward.saved != len(rows):
            rows = rows[: forward.saved]
        last = options.saves.values[forward.saved - 1] if forward.saved else None
        if ended and last != forward.t:  # a solve that ended early returns the state that it ended with
            rows = torch.cat([rows, forward.final[None]])
            where = where[: forward.saved]
            where.append(-1 - forward.accepted)
            thetas = thetas[: forward.saved]
            thetas.append(0.0)
    elif options.unsaved == "steps":
        rows = forward.buffers.y[: (forward.accepted + 1) * n].clone().view(-1, n)
        where, thetas = nodes(forward.accepted + 1)
    else:
        rows = forward.final.clone()[None]
        where, thetas = node(forward.accepted)
    moved = options.saves is not None
    return Observation(forward, rows, where, thetas, moved, lambda: _again(forward, sensealg))


def _again(forward: Forward, sensealg: SenseAlg | None) -> Tensor:
    """The returned states, solved for in eager torch."""
    ys = solve_again(forward, sensealg).ys
    assert isinstance(ys, Tensor)
    return ys.flatten(1)


def _saved_times(forward: Forward, count: int, graph: bool) -> Tensor:
    """The times of the returned states: the user's own where there are any."""
    problem, saves = forward.problem, forward.options.saves
    if saves is not None:
        known = min(count, forward.saved)
        ts = forward.plan.saves[:known].clone() if saves.tensor is None else saves.tensor[:known].double()
        return ts if known == count else torch.cat([ts, torch.tensor([forward.t], dtype=torch.float64)])
    if forward.options.unsaved == "end":
        return _tied(torch.tensor([forward.t], dtype=torch.float64), problem.t1 if forward.status.ok else None, graph)
    ts = forward.buffers.t[:count].clone()
    if not graph or (problem.t0.tensor is None and problem.t1.tensor is None):
        return ts
    # Steps keep their sizes: their ends move with t0, but for the last one's.
    inner = _tied(ts[:-1], problem.t0, graph)
    return torch.cat([inner, _tied(ts[-1:], problem.t1 if forward.status.ok else problem.t0, graph)])


def _tied(ts: Tensor, to: TimePoint | None, graph: bool) -> Tensor:
    """``ts``, moving with ``to``."""
    if to is None or to.tensor is None or not graph:
        return ts
    return ts + (to.tensor.double() - to.value)
