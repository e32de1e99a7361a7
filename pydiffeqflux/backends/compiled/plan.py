"""What a solve is made of besides its initial state: built once, and used again by the next solve like it."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...methods import Method
from ...problem import ODEProblem
from ..backend import SolveOptions
from .loops import layout as at
from .tableaus import Table, table_of

#: As in ``eager.control``: an absolute tolerance that is as good as zero.
_TINY = 1e-37


def zeros(kind: str, count: int) -> array[Any]:
    """``count`` zeros of eight bytes: ``"q"`` for integers, ``"d"`` for numbers."""
    return array(kind, bytes(8 * max(count, 1)))


def place(a: array[Any]) -> int:
    """Where an array's memory begins."""
    return a.buffer_info()[0]


@dataclass
class Plan:
    """Method, span, save times, tolerances and step control, as the loops take them."""

    table: Table
    ints: array[Any]
    floats: array[Any]
    times: array[Any]
    rtol: Tensor
    atol: Tensor

    def __post_init__(self) -> None:
        #: What solves without a gradient work in, while none of them does (see ``plain``).
        self.rooms: list[Any] = []
        #: The save times as the solution shows them.
        self.saves = torch.tensor(self.times, dtype=torch.float64)
        #: Addresses, in the order in which the loop takes them.
        self.addresses = (
            place(self.floats), self.table.address, place(self.times), self.rtol.data_ptr(), self.atol.data_ptr(),
        )  # fmt: skip


class Plans:
    """The last plan of a model: a training loop solves the same problem again and again."""

    def __init__(self) -> None:
        self._key: Any = None
        self._plan: Plan | None = None
        self._last: tuple[Any, ...] = ()

    def get(self, problem: ODEProblem, method: Method, options: SolveOptions) -> Plan:
        last, plan = self._last, self._plan
        if plan is not None and last[0] is options and last[1] is method and last[2:] == problem.ends:
            return plan
        saves = None if options.saves is None else options.saves.values
        key = (
            method, problem.t0.value, problem.t1.value, saves, options.rtol, options.atol, options.max_steps,
            options.dt, options.dt_min, options.dt_max, options.controller, options.dense,
        )  # fmt: skip
        if isinstance(options.rtol, Tensor) or isinstance(options.atol, Tensor):
            return make(problem, method, options)  # tensors do not compare
        if self._plan is None or key != self._key:
            self._key, self._plan = key, make(problem, method, options)
        self._last = (options, method, *problem.ends)
        return self._plan


def make(problem: ODEProblem, method: Method, options: SolveOptions) -> Plan:
    """The plan of a solve whose method has a table."""
    table = table_of(method)
    assert table is not None
    saves = () if options.saves is None else options.saves.values
    c, k = options.controller, table.error_order + 1
    ints = array("q", table.ints)
    ints[at.N], ints[at.SAVES] = problem.packed.numel(), len(saves)
    ints[at.MAX_STEPS], ints[at.DENSE] = options.max_steps, options.dense
    floats = array("d", [
        problem.t0.value, problem.t1.value, math.nan if options.dt is None else options.dt, options.dt_min,
        options.dt_max, c.safety, c.factor_min, c.factor_max, -(c.icoeff + c.pcoeff + c.dcoeff) / k,
        (c.pcoeff + 2 * c.dcoeff) / k, -c.dcoeff / k, -1.0 / k, 1.0 / k,
    ])  # fmt: skip
    y0 = problem.packed
    rtol, atol = (_per_entry(tol, y0, least) for tol, least in ((options.rtol, 0.0), (options.atol, _TINY)))
    return Plan(table, ints, floats, array("d", saves or (0.0,)), rtol, atol)


def _per_entry(tol: float | Tensor, y0: Tensor, least: float) -> Tensor:
    if isinstance(tol, Tensor):
        return tol.to(y0.dtype).expand(y0.shape).reshape(-1).contiguous().clamp_min(least)
    return torch.full((y0.numel(),), max(tol, least), dtype=y0.dtype)
