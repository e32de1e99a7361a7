"""DiscreteAdjoint: the exact gradient of what an explicit solve returned."""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import toolchain
from .forward import Buffers, Forward
from .loops import discrete
from .loops import layout as at
from .plan import place, zeros


@functools.cache
def sweep_of(single: bool) -> Callable[..., int]:
    """The backward loop for a dtype."""
    return toolchain.loop(discrete.sweep, single)


@functools.cache
def replay_of(single: bool) -> Callable[..., int]:
    """The loop that takes recorded steps again."""
    return toolchain.loop(discrete.replay, single)


@dataclass
class Gradient:
    """What a sweep found: gradients of the initial state, the parameters, both ends of time, and the observations.

    Attributes:
        memory: holds the first two: the state's from the start on, the parameters' from ``params`` on (None: not
            wanted).
    """

    memory: Tensor
    params: int | None
    t0: float
    t1: float
    times: list[float]


@dataclass
class Segment:
    """Some consecutive steps, and where their states and slopes lie."""

    first: int
    count: int
    y: int
    k: int


def gradient(
    run: Forward, seeds: Tensor, where: array[Any], thetas: array[Any], *, params: bool, timed: bool
) -> Gradient:
    """Back through the whole solve.

    Args:
        seeds: the loss's gradient at each observed state, ``(count, n)``.
        where, thetas: where those lie.
        params, timed: whether the gradients of parameters and of times are wanted.
    """
    model, table = run.model, run.table
    dtype, n = seeds.dtype, run.ints[at.N]
    count = run.given.p.numel() if run.given.params else 0
    full = params or timed
    ints = array("q", run.ints)
    ints[at.PARAMS], ints[at.TIMED] = count if full else -1, timed
    kernel = model.address("vjp" if full else "vjp_y")
    seeds = seeds.contiguous()
    # One piece of memory: lam, parameters; then carry, slopes' gradients, room for three states, one more set of
    # parameters, and the kernels' own.
    sizes = (n, max(count, 1), n, table.every * n, 3 * n, max(count, 1), model.work)
    memory = torch.zeros(sum(sizes), dtype=dtype)
    start, width = memory.data_ptr(), memory.element_size()
    lam, total, carry, kbar, work, piece, own = (start + width * x for x in itertools.accumulate((0, *sizes[:-1])))
    row, ends, gsaves = array("q", [len(seeds)]), zeros("d", 2), zeros("d", len(seeds))
    last = run.accepted - 1 if run.landed else -1
    before = kernel, place(ints), table.address, *run.given.addresses, own
    after = (
        seeds.data_ptr(), place(where), place(thetas), place(row), lam, carry, total, place(ends), place(gsaves),
        kbar, work, piece,
    )  # fmt: skip
    if run.checkpoints is None:
        t, h, _, _, extras = run.buffers.addresses
        steps = t, h, extras
    else:
        steps = place(run.times), place(run.sizes), place(run.extras)
    loop = sweep_of(model.single)
    for segment in _segments(run, own, work):
        loop(*before, segment.first, segment.count, last, *steps, segment.y, segment.k, *after)
    if not run.accepted:
        memory[:n] += seeds.sum(0)
    return Gradient(memory, n if full and count else None, ends[0], ends[1], list(gsaves) if timed else [])


def _segments(run: Forward, own: int, work: int) -> Iterator[Segment]:
    """The solve's steps, from the last to the first: as they were kept, or taken again between two snapshots."""
    if run.checkpoints is None:
        if run.accepted:
            _, _, y, k, _ = run.buffers.addresses
            yield Segment(0, run.accepted, y, k)
        return
    n, every = run.ints[at.N], run.table.every
    again, address = replay_of(run.model.single), run.model.address("f")
    shots = run.checkpoints.shots
    ends = [*(shot.step for shot in shots[1:]), run.accepted]
    longest = max((end - shot.step for shot, end in zip(shots, ends, strict=True)), default=0)
    if longest == 0:
        return
    b = Buffers.make(longest, n, every, shots[0].y.dtype)
    for shot, end in zip(reversed(shots), reversed(ends), strict=True):
        count = end - shot.step
        if count == 0:
            continue
        b.y[:n], b.k[:n] = shot.y, shot.k
        _, _, y, k, _ = b.addresses
        again(
            address, place(run.ints), run.table.address, *run.given.addresses, own, shot.step, count,
            place(run.times), place(run.sizes), place(run.extras), y, k, work,
        )  # fmt: skip
        yield Segment(shot.step, count, y, k)
