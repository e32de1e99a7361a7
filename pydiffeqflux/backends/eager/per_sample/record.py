"""What a per-sample solve keeps on its way, and how it is put together at the end.

Rows reach a time in different steps. Every step adds what it has as (row, column, value) triples, or as whole
batches with a mask; one gather at the end sorts them, so that the backward pass is linear in their number.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ....state import State, StateSpec
from ...common.dense import Interpolant, powers
from .events import RowCrossing
from .layout import Layout


def evaluate_rows(piece: Interpolant, rows: Tensor, theta: Tensor) -> Tensor:
    """The interpolant at ``theta[k]`` on row ``rows[k]``: ``(K, ...)``, with the gradient of theta."""
    coeffs = torch.as_tensor(piece.coeffs, dtype=theta.dtype, device=theta.device)
    y0 = piece.y0.index_select(0, rows)
    weights = (powers(theta, piece.coeffs.shape[1]) @ coeffs.T).to(y0.dtype)
    vectors = torch.stack(tuple(piece.vectors)).index_select(1, rows)
    total = torch.einsum("km,mk...->k...", weights, vectors)
    if isinstance(piece.dt, Tensor):
        total = total * piece.dt.index_select(0, rows)
    return y0 + total


@dataclass
class Scattered:
    """Values for single (row, column) places of a ``(columns, B, ...)`` tensor."""

    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        self.rows.append(rows)
        self.columns.append(columns)
        self.values.append(values)

    def gather(self, count: int, final: Tensor, hold: Tensor) -> Tensor:
        """All places, ``(count, B, ...)``.

        A place that no step reached gets its row's ``final`` state where ``hold`` says so (for a row, ``(B,)``,
        or a place, ``(columns, B)``), and NaN elsewhere.
        """
        size, device = final.shape[0], final.device
        missing = torch.full_like(final[:1], torch.nan)
        values = torch.cat([*self.values, final, missing])
        taken = len(values) - size - 1
        spare = torch.where(hold, torch.arange(taken, taken + size, device=device), taken + size)
        index = spare.expand(count, size).reshape(-1).clone()
        if self.rows:
            places = torch.cat(self.columns) * size + torch.cat(self.rows)
            index[places] = torch.arange(taken, device=device)
        return values.index_select(0, index).reshape(count, *final.shape)


@dataclass
class StepLog:
    """The end of every step, of which each row took some: ``mask`` says which."""

    masks: list[Tensor] = field(default_factory=list)
    times: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def add(self, mask: Tensor, t: Tensor, y: Tensor) -> None:
        self.masks.append(mask)
        self.times.append(t)
        self.states.append(y)

    def gather(self) -> tuple[Tensor, Tensor]:
        """Times ``(T, B)`` and states ``(T, B, ...)``: each row's own, the last one repeated to the longest's end."""
        order = own_order(torch.stack(self.masks))
        times, states = torch.stack(self.times), torch.stack(self.states)
        size = order.shape[1]
        flat = (order * size + torch.arange(size, device=order.device)).reshape(-1)
        parts = [x.flatten(0, 1).index_select(0, flat).reshape(*order.shape, *x.shape[2:]) for x in (times, states)]
        return parts[0], parts[1]


def own_order(masks: Tensor) -> Tensor:
    """For masks ``(S, B)``: the indices of each row's own entries in order, ``(T, B)``, the last one repeated."""
    counts = masks.sum(0)
    order = torch.argsort((~masks).to(torch.uint8), dim=0, stable=True)
    longest = int(counts.max())
    within = torch.arange(longest, device=masks.device).unsqueeze(1)
    return order.gather(0, torch.minimum(within, (counts - 1).clamp(min=0)))


def rows_of_events(
    crossings: list[RowCrossing], layout: Layout, like: Tensor, spec: StateSpec | None
) -> tuple[list[Tensor], list[State]]:
    """Times and states of one event, for each row a ``(n,)`` tensor and the states, time first."""
    picked = [c.rows.nonzero().squeeze(1) for c in crossings]
    rows = torch.cat([*picked, torch.zeros(0, dtype=torch.long, device=layout.device)])
    times = [c.t.index_select(0, p) for c, p in zip(crossings, picked, strict=True)]
    states = [c.y.index_select(0, p) for c, p in zip(crossings, picked, strict=True)]
    order = rows.argsort(stable=True)
    counts = torch.bincount(rows, minlength=layout.size).tolist()
    when = torch.split_with_sizes(torch.cat([*times, layout.full(0.0)[:0]]).index_select(0, order), counts)
    where = torch.split_with_sizes(torch.cat([*states, like[:0]]).index_select(0, order), counts)
    return list(when), [_unpacked_rows(y, spec) for y in where]


def _unpacked_rows(packed: Tensor, spec: StateSpec | None) -> State:
    """States of one row, time first, in the user's structure (without the dimension of the batch)."""
    if spec is None:
        return packed
    shapes = tuple(torch.Size((packed.shape[0], *shape[1:])) for shape in spec.shapes)
    return replace(spec, shapes=shapes).unflatten(packed)


@dataclass
class DenseLog:
    """Every step's interpolant, with the rows whose step it was."""

    direction: float
    masks: list[Tensor] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    sizes: list[Tensor] = field(default_factory=list)
    pieces: list[Interpolant] = field(default_factory=list)
    _index: Any = None

    def add(self, mask: Tensor, t: Tensor, dt: Tensor, piece: Interpolant) -> None:
        self.masks.append(mask)
        self.starts.append(t)
        self.sizes.append(dt)
        self.pieces.append(piece)

    def at(self, times: Tensor, final: Tensor, t_final: Tensor, hold: Tensor) -> Tensor:
        """The states at ``times`` (n,), shape ``(n, B, ...)``; after a row's end its final state, or NaN."""
        signed = times.detach() * self.direction
        steps, slots = self._steps_at(signed)
        reached = signed <= (t_final * self.direction).unsqueeze(1)
        inside = reached & (slots >= 0)
        found = Scattered()
        wanted = torch.where(inside, steps, -1)
        for index in sorted(set(wanted.flatten().tolist()) - {-1}):
            rows, columns = (wanted == index).nonzero(as_tuple=True)
            theta = (times[columns] - self.starts[index][rows]) / self.sizes[index][rows]
            found.add(rows, columns, evaluate_rows(self.pieces[index], rows, theta))
        # Reached without a step: the very start of a row that never made one.
        return found.gather(len(times), final, hold | reached.T)

    def _steps_at(self, signed: Tensor) -> tuple[Tensor, Tensor]:
        """For every row and time the step that holds it, ``(B, n)``; the slot is -1 where there is none."""
        if self._index is None:
            masks = torch.stack(self.masks)
            order = own_order(masks)
            starts = torch.stack([s.detach() for s in self.starts]).gather(0, order) * self.direction
            beyond = torch.arange(len(order), device=order.device).unsqueeze(1) >= masks.sum(0)
            self._index = order, starts.masked_fill(beyond, torch.inf).T.contiguous()
        order, starts = self._index
        slots = torch.searchsorted(starts, signed.expand(len(starts), -1).contiguous(), right=True) - 1
        return order.T.gather(1, slots.clamp(min=0)), slots
