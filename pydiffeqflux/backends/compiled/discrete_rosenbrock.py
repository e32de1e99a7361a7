"""DiscreteAdjoint of a Rosenbrock solve."""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import toolchain
from .discrete import Gradient
from .forward import Forward
from .loops import discrete_rosenbrock as loop
from .loops import layout as at
from .plan import place
from .second import Second, second_of


@functools.cache
def sweep_of(single: bool) -> Callable[..., int]:
    return toolchain.loop(loop.sweep_rosenbrock, single)


def gradient(run: Forward, seeds: Tensor, where: array[Any], thetas: array[Any]) -> Gradient:
    """As ``discrete.gradient``, without times and checkpoints."""
    model, table, n = run.model, run.table, run.ints[at.N]
    second = second_of(run.problem, model)
    assert isinstance(second, Second)
    count = run.given.p.numel() if run.given.params else 0
    ints = array("q", run.ints)
    ints[at.PARAMS] = count
    model.address("vjp")
    ints[at.SPACE] = kernels = max(model.work, second.work)
    seeds = seeds.contiguous()
    sizes = (n, max(count, 1), table.every * n, 3 * n + 2, max(count, 1), kernels + 2 * n * n + 2 * n)
    memory = torch.zeros(sum(sizes), dtype=seeds.dtype)
    start, width = memory.data_ptr(), memory.element_size()
    lam, total, kbar, work, piece, own = (start + width * x for x in itertools.accumulate((0, *sizes[:-1])))
    c, i = second.constants()
    places, row = array("q", second.places), array("q", [len(seeds)])
    t, h, y, k, _ = run.buffers.addresses
    if run.accepted:
        sweep_of(model.single)(
            model.address("vjp"), second.address, place(ints), table.address, *run.given.addresses, own, c.data_ptr(),
            i.data_ptr(), place(places), 0, run.accepted, t, h, y, k, seeds.data_ptr(), place(where), place(thetas),
            place(row), lam, total, kbar, work, piece,
        )  # fmt: skip
    else:
        memory[:n] += seeds.sum(0)
    return Gradient(memory, n if count else None, 0.0, 0.0, [])
