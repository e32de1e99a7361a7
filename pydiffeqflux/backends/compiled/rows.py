"""Per-sample mode: every row of the batch is a solve of its own, by kernels made for one row.

Without a gradient one loop takes all rows (both cores share the rows of a large batch); with one, each row keeps its
steps, and going back is one sweep a row.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import SenseAlg
from ...solution import Solution, Stats, Status
from ..backend import SolveOptions
from . import toolchain
from .again import states_again
from .forward import CODES, Forward
from .loops import layout as at
from .loops import rows as loop
from .model import Arguments, Model
from .observed import Observation, differentiable_gradients, gradients, node
from .plan import Plan, place, zeros
from .row import row_of

#: Rows from which on torch's threads share them.
MANY = 64


@functools.cache
def loop_of(single: bool) -> Callable[..., int]:
    return toolchain.loop(loop.integrate_rows, single)


@dataclass
class Solved:
    """What a batch came to: ``(saves, B, n)`` states (NaN where a row did not get there), ends, and counts a row."""

    states: Tensor
    final: Tensor
    ends: list[float]
    codes: list[int]
    accepted: list[int]
    rejected: list[int]
    nf: int


def agrees(problem: ODEProblem, model: Model, given: Arguments) -> bool:
    """Whether the model of one row says of every row what the function of the whole batch says.

    Looked at once: a function that treats its rows differently (by tensors with one entry a row) shows it here.
    """
    if model.rows_agree is None:
        y = problem.packed.detach().contiguous()
        t = torch.full([len(y)] + [1] * (y.dim() - 1), problem.t0.value, dtype=y.dtype)
        model.address("f")
        work = torch.empty(model.work, dtype=y.dtype)
        with torch.no_grad():
            whole = problem.func(t, y)
            single = torch.stack([model.evaluate(problem.t0.value, row[None], given, work)[0] for row in y])
        tol = 1e-4 if model.single else 1e-8
        scale = float(whole.abs().max())
        same = whole.shape == single.shape and torch.allclose(whole, single, rtol=tol, atol=tol * scale, equal_nan=True)
        model.rows_agree = bool(same)
    return model.rows_agree


def solve(
    problem: ODEProblem, method: Method, options: SolveOptions, model: Model, given: Arguments, graph: bool,
    sensealg: SenseAlg | None,
) -> tuple[Solution, str]:  # fmt: skip
    """The solution, and what went wrong where it failed."""
    row = row_of(problem)
    plan = model.plans.get(row, method, replace(options, dense=False))
    y0 = problem.packed.detach().contiguous().view(len(problem.packed), -1)
    runs: list[Forward] = []
    with torch.no_grad():
        if graph:
            runs = [_run(row, method, options, plan, model, given, y) for y in y0]
            solved = _collect(runs, y0, len(plan.times) if options.saves is not None else 0)
        else:
            solved = _all(plan, model, given, y0)
    if not plan.table.adaptive:
        finite = torch.isfinite(solved.final).all(1).tolist()
        solved.codes = [c if ok else at.NON_FINITE for c, ok in zip(solved.codes, finite, strict=True)]
    rows = solved.states if options.saves is not None else solved.final[None]
    failed = [r for r, c in enumerate(solved.codes) if c != at.DONE]
    if failed and options.saves is not None:  # what was saved before the failure stays
        rows[:, failed] = torch.where(torch.isfinite(rows[:, failed]), rows[:, failed], torch.nan)
    if graph:
        times = None if options.saves is None else options.saves.tensor
        again = functools.partial(states_again, problem, method, options, sensealg, rows=True)
        batch = Batch(runs, rows, options.saves is not None, again)
        rows = _Rows.apply(batch, problem.packed, problem.t0.tensor, problem.t1.tensor, times, *given.params)
    statuses = [CODES[c] for c in solved.codes]
    ts = plan.saves.clone() if options.saves is not None else torch.tensor(solved.ends, dtype=torch.float64)[None]
    if options.saves is not None and options.saves.tensor is not None:
        ts = options.saves.tensor.double()
    worst = max(statuses, key=_ORDER.index)
    solution = Solution(ts, rows.view(len(rows), *problem.packed.shape), Stats(), worst, statuses=statuses)
    solution.stats = Stats(nf=solved.nf, naccept=torch.tensor(solved.accepted), nreject=torch.tensor(solved.rejected))
    return solution, _message(solved, statuses, worst, options)


_ORDER = (Status.SUCCESS, Status.MAX_STEPS, Status.STEP_UNDERFLOW, Status.NON_FINITE)


def _message(solved: Solved, statuses: Sequence[Status], worst: Status, options: SolveOptions) -> str:
    """In the words of the eager engine."""
    if worst.ok:
        return ""
    bad = [r for r, s in enumerate(statuses) if not s.ok]
    first = next(r for r in bad if statuses[r] is worst)
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    what = {
        Status.MAX_STEPS: f"max_steps={options.max_steps} steps were not enough",
        Status.STEP_UNDERFLOW: "the step size became too small to move the time",
        Status.NON_FINITE: "the right-hand side or the state became NaN or infinite",
    }[worst]
    return f"{len(bad)} of {len(statuses)} rows failed ({shown}); row {first}: {what} at t={solved.ends[first]:.6g}"


def _run(
    row: ODEProblem, method: Method, options: SolveOptions, plan: Plan, model: Model, given: Arguments, y0: Tensor
) -> Forward:
    run = Forward(row, method, options, plan, model, given, True)
    run.run(y0)
    return run


def _collect(runs: Sequence[Forward], y0: Tensor, saves: int) -> Solved:
    states = y0.new_full((saves, *y0.shape), torch.nan)
    for r, run in enumerate(runs):
        states[: run.saved, r] = run.states[: run.saved] if saves else states[:0, r]
    final = torch.stack([run.final for run in runs])
    return Solved(
        states, final, [r.t for r in runs], [r.code for r in runs], [r.accepted for r in runs],
        [r.rejected for r in runs], max(r.nf for r in runs),
    )  # fmt: skip


def _all(plan: Plan, model: Model, given: Arguments, y0: Tensor) -> Solved:
    """All rows, without keeping steps."""
    rows, n = y0.shape
    saves = plan.ints[at.SAVES]
    states = torch.empty(saves, rows, n, dtype=y0.dtype)
    final = torch.empty_like(y0)
    ends, found, codes = zeros("d", rows), zeros("q", 4 * rows), zeros("q", rows)
    address, every, loops = model.address("f"), plan.table.every, loop_of(model.single)

    def some(first: int, count: int) -> None:
        ints = array("q", plan.ints)
        si, sf, t = zeros("q", at.STATE_INTS), zeros("d", at.STATE_FLOATS), zeros("d", 4)
        own, marks = zeros("d", 4 + 2 * saves + 2), zeros("q", 4 + saves)
        sizes = (model.work, 2 * n, 2 * every * n, (plan.table.scratch + loop.TOGETHER * max(saves, 1)) * n)
        memory = torch.empty(sum(sizes), dtype=y0.dtype)
        w, y, k, work = (x.data_ptr() for x in memory.split_with_sizes(sizes))
        floats, *rest = plan.addresses
        loops(
            address, first, count, rows, place(ints), floats, *rest, *given.addresses, w, place(si), place(sf),
            y0.data_ptr(), place(t), states.data_ptr(), final.data_ptr(), place(ends), place(found), place(codes), y,
            k, place(own), place(marks), work,
        )  # fmt: skip

    threads = torch.get_num_threads() if rows >= MANY else 1
    if threads == 1:
        some(0, rows)
    else:  # the loop lets go of Python's lock
        share = -(-rows // threads)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda first: some(first, min(share, rows - first)), range(0, rows, share)))
    return Solved(
        states, final, list(ends), list(codes), list(found[0::4]), list(found[1::4]), max(found[2::4]),
    )  # fmt: skip


@dataclass
class Batch:
    """The rows' solves, and their states ``(count, B, n)``."""

    runs: list[Forward]
    rows: Tensor
    saved: bool
    again: Callable[[], Tensor]


class _Rows(torch.autograd.Function):
    """``(y0, t0, t1, times, *params) -> rows``."""

    @staticmethod
    def forward(ctx: Any, batch: Batch, *inputs: Tensor | None) -> Tensor:
        ctx.batch = batch
        ctx.save_for_backward(*inputs)
        return batch.rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batch, inputs, wanted = ctx.batch, ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return (None, *differentiable_gradients(batch.again, inputs, wanted, grads[0]))
        y0, *others = inputs
        found: list[list[Tensor | None]] = []
        for r, run in enumerate(batch.runs):
            where, thetas = (run.where, run.thetas) if batch.saved else node(run.accepted)
            count = run.saved if batch.saved else 1
            seen = Observation(run, batch.rows[:count, r], where, thetas, batch.saved, batch.again)
            found.append(gradients(seen, (y0[r], *others), wanted, grads[0][:count, r].contiguous()))
        per_row, *shared = zip(*found, strict=True)
        first = None if per_row[0] is None else torch.stack(per_row)
        return (None, first, *(None if x[0] is None else torch.stack(x).sum(0) for x in shared))
