"""DiscreteAdjoint: the exact gradient of what an explicit solve returned."""

from __future__ import annotations

import functools
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
    """What a sweep found: gradients of the initial state, the parameters, both ends of time, and the observations."""

    y0: Tensor
    params: Tensor | None
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
    # One piece of memory: lam, carry, slopes' gradients, three states' room, two sets of parameters, the kernels' own.
    sizes = (n, n, table.every * n, 3 * n, max(count, 1), max(count, 1), model.work)
    memory = torch.zeros(sum(sizes), dtype=dtype)
    lam, carry, kbar, work, total, piece, own = memory.split_with_sizes(sizes)
    row, ends, gsaves = array("q", [len(seeds)]), zeros("d", 2), zeros("d", len(seeds))
    last = run.accepted - 1 if run.status.ok else -1
    loop, given = sweep_of(model.single), run.given.addresses
    tab = table.address
    if run.checkpoints is None:
        t, h, _, _, extras = run.buffers.addresses
        steps = t, h, extras
    else:
        steps = place(run.times), place(run.sizes), place(run.extras)
    for segment in _segments(run, own, work):
        loop(
            kernel, place(ints), tab, *given, own.data_ptr(), segment.first, segment.count, last, *steps,
            segment.y, segment.k, seeds.data_ptr(), place(where), place(thetas), place(row),
            lam.data_ptr(), carry.data_ptr(), total.data_ptr(), place(ends), place(gsaves), kbar.data_ptr(),
            work.data_ptr(), piece.data_ptr(),
        )  # fmt: skip
    if not run.accepted:
        lam += seeds.sum(0)
    return Gradient(lam, total if full and count else None, ends[0], ends[1], list(gsaves) if timed else [])


def _segments(run: Forward, own: Tensor, work: Tensor) -> Iterator[Segment]:
    """The solve's steps, from the last to the first: as they were kept, or taken again between two snapshots."""
    if run.checkpoints is None:
        if run.accepted:
            _, _, y, k, _ = run.buffers.addresses
            yield Segment(0, run.accepted, y, k)
        return
    n, every = run.ints[at.N], run.table.every
    again, address = replay_of(run.model.single), run.model.address("f")
    end = run.accepted
    for shot in reversed(run.checkpoints.shots):
        count = end - shot.step
        if count == 0:
            continue
        b = Buffers.make(count, n, every, shot.y.dtype)
        b.y[:n], b.k[:n] = shot.y, shot.k
        _, _, y, k, _ = b.addresses
        again(
            address, place(run.ints), run.table.address, *run.given.addresses, own.data_ptr(), shot.step, count,
            place(run.times), place(run.sizes), place(run.extras), y, k, work.data_ptr(),
        )  # fmt: skip
        yield Segment(shot.step, count, y, k)
        end = shot.step
