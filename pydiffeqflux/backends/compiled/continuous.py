"""InterpolatingAdjoint, BacksolveAdjoint and GaussAdjoint: an adjoint equation, solved backwards by the same loop."""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import SolveError
from ...methods import Method, resolve
from ...sensealg import BacksolveAdjoint, GaussAdjoint, SenseAlg
from ..common.failure import failure
from ..once import once
from . import toolchain
from .forward import CODES, Buffers, Forward, loop_of
from .loops import continuous as loop
from .loops import layout as at
from .plan import place, zeros
from .tableaus import Table, table_of


@functools.cache
def quadrature_of(single: bool) -> Callable[..., int]:
    return toolchain.loop(loop.quadrature, single)


@dataclass
class Backwards:
    """The adjoint of one forward solve.

    Attributes:
        seeds: the loss's gradient at the observed states, ``(count, n)``, and ``times`` of them; at the end of the
            solve where there are none (``times`` is empty).
    """

    run: Forward
    sense: Any
    seeds: Tensor
    times: list[float]

    def __post_init__(self) -> None:
        run, model = self.run, self.run.model
        self.n = n = run.ints[at.N]
        self.params = run.given.p.numel() if run.given.params else 0
        self.method: Method = run.method if self.sense.method is None else resolve(self.sense.method)
        table = table_of(self.method)
        assert table is not None
        self.table: Table = table
        self.backsolve = isinstance(self.sense, BacksolveAdjoint)
        self.gauss = isinstance(self.sense, GaussAdjoint)
        kernel = loop.backsolving if self.backsolve else loop.adjoint if self.gauss else loop.interpolating
        self.kernel = toolchain.kernel(kernel, model.single)
        t, h, y, k, _ = run.buffers.addresses
        self.context = array("q", [
            n, run.accepted, model.address("f"), model.address("vjp"), model.address("vjp_y"), run.given.i.data_ptr(),
            place(run.ints), run.table.address, t, h, y, k, int(run.problem.direction),
        ])  # fmt: skip
        self.size = n * (2 if self.backsolve else 1) + (0 if self.gauss else self.params)
        self.dt: float | None = run.options.dt if not table.adaptive else None

    def solve(self) -> tuple[Tensor, Tensor]:
        """The gradients of the initial state and of the parameters."""
        n, dtype = self.n, self.seeds.dtype
        z = torch.zeros(self.size, dtype=dtype)
        lam = z[n : 2 * n] if self.backsolve else z[:n]
        self.mu = torch.zeros(self.params, dtype=dtype) if self.gauss else z[self.size - self.params :]
        if not self.times:
            lam += self.seeds[0]
        if self.backsolve:
            z[:n] = self.run.final
        for t, s, index in self._stretches():
            if t != s:
                z.copy_(self._integrate(z, t, s))
            if index is not None:
                lam += self.seeds[index]
                if self.backsolve and self.sense.checkpointing:
                    z[:n] = self.observed(index)
        return lam.clone(), self.mu

    def observed(self, index: int) -> Tensor:
        """The forward solution at an observation."""
        if self.run.options.saves is not None:
            return self.run.states[index]
        return self.run.buffers.y[index * self.n : (index + 1) * self.n]

    def _stretches(self) -> Iterator[tuple[float, float, int | None]]:
        """From the end back to the start, with a stop where the loss has a gradient."""
        t, t0 = self.run.t, self.run.problem.t0.value
        felt = (self.seeds != 0).any(1).tolist()
        for i in reversed(range(len(self.times))):
            if felt[i]:
                yield t, self.times[i], i
                t = self.times[i]
        if t != t0:
            yield t, t0, None

    def _integrate(self, z: Tensor, t: float, s: float) -> Tensor:
        """The adjoint at ``s`` for that at ``t``; the parameters' integral, too, for Gauss."""
        run, options, table, dtype = self.run, self.run.options, self.table, z.dtype
        rtol = _scalar(options.rtol) if self.sense.rtol is None else self.sense.rtol
        atol = _scalar(options.atol) if self.sense.atol is None else self.sense.atol
        c, k = options.controller, table.error_order + 1
        dt = self.dt if self.dt is not None or table.adaptive else abs(t - s)
        floats = array("d", [
            t, s, float("nan") if dt is None else dt, options.dt_min, options.dt_max, c.safety, c.factor_min,
            c.factor_max, -(c.icoeff + c.pcoeff + c.dcoeff) / k, (c.pcoeff + 2 * c.dcoeff) / k, -c.dcoeff / k,
            -1.0 / k, 1.0 / k,
        ])  # fmt: skip
        ints = array("q", table.ints)
        ints[at.N], ints[at.MAX_STEPS] = self.size, options.max_steps
        ints[at.KEEP] = ints[at.DENSE] = int(self.gauss)
        if not self.gauss:
            parts = (self.n, 2 * self.n) if self.backsolve else (self.n, self.n)
            ints[at.PART_1], ints[at.PART_2] = parts
            seminorm = self.backsolve and self.sense.seminorm
            ints[at.PART_END] = 2 * self.n if seminorm else self.size
        room = 32 if self.gauss else 1
        buffers = Buffers.make(room, self.size, table.every, dtype)
        buffers.y[: self.size] = z
        own = 4 * self.n + 2 + run.model.work
        memory = torch.empty(4 * self.size + own + self.params, dtype=dtype)
        memory[: self.size], memory[self.size : 2 * self.size] = rtol, max(atol, 1e-37)
        width, start = memory.element_size(), memory.data_ptr()
        r, a, work, w, piece = (
            start + width * x for x in itertools.accumulate((0, self.size, self.size, 2 * self.size, own))
        )
        si, sf, none = zeros("q", at.STATE_INTS), array("d", (0.0, 0.0, 1.0, 1.0)), zeros("d", 2)
        p, consts, _ = run.given.addresses
        while True:
            ints[at.CAPACITY] = room
            code = loop_of(run.model.single)(
                self.kernel, place(ints), place(floats), table.address, place(none), r, a, p, consts,
                place(self.context), w, place(si), place(sf), *buffers.addresses, piece, place(none), place(none), work,
            )  # fmt: skip
            if code != at.FULL:
                break
            room *= 2
            buffers = buffers.grown(room)
        if code != at.DONE:
            raise self._failure(code, sf[at.NOW], (t, s))
        if table.adaptive:
            self.dt = sf[at.SIZE]
        accepted = si[at.ACCEPTED]
        if self.gauss and self.params:
            self._quadrature(buffers, accepted, ints, w, piece)
        last = accepted if self.gauss else accepted & 1
        return buffers.y[last * self.size : (last + 1) * self.size]

    def _quadrature(self, buffers: Buffers, count: int, ints: array[Any], w: int, piece: int) -> None:
        rule = np.polynomial.legendre.leggauss(self.method.order // 2 + 2)
        x, weights = (array("d", values.tolist()) for values in rule)
        t, h, y, k, _ = buffers.addresses
        p, consts, _ = self.run.given.addresses
        quadrature_of(self.run.model.single)(
            count, len(x), self.params, place(x), place(weights), place(ints), self.table.address, t, h, y, k, p,
            consts, place(self.context), w, piece, self.mu.data_ptr(),
        )  # fmt: skip

    def _failure(self, code: int, t: float, span: tuple[float, float]) -> SolveError:
        return failure(CODES[code], "in the backward solve, the adjoint was lost", t, span, self.method)


def _scalar(tol: float | Tensor) -> float:
    return float(tol.min()) if isinstance(tol, Tensor) else tol


def uncovered(sense: SenseAlg, method: Method) -> str | None:
    """Why a continuous adjoint is not compiled."""
    backwards = method if getattr(sense, "method", None) is None else resolve(sense.method)  # type: ignore[attr-defined]
    if method.implicit or backwards.implicit:
        return f"sensealg={sense.name} with an implicit method is not compiled"
    if table_of(backwards) is None:
        return f"sensealg={sense.name}(method={backwards}) is not compiled"
    if not isinstance(sense, BacksolveAdjoint) and getattr(sense, "checkpointing", False):
        return f"sensealg={sense.name}(checkpointing=True) is not compiled"
    return None


class _Solve(torch.autograd.Function):
    """``(y0, t0, t1, saves, *params) -> rows``."""

    @staticmethod
    def forward(ctx: Any, run: Forward, sense: SenseAlg, rows: Tensor, times: list[float], *inputs: Any) -> Tensor:
        ctx.run, ctx.sense, ctx.times = run, sense, times
        ctx.save_for_backward(rows.clone(), *inputs)
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sense = ctx.sense
        with torch.no_grad():
            found = _Solve._pull_back(ctx, grads[0].contiguous())
        return once(_once_only(sense), found, (None, None, None, None, *ctx.saved_tensors[1:]))

    @staticmethod
    def _pull_back(ctx: Any, seeds: Tensor) -> tuple[Tensor | None, ...]:
        run, sense, times = ctx.run, ctx.sense, ctx.times
        rows, y0, t0, t1, saves, *params = ctx.saved_tensors
        lam, mu = Backwards(run, sense, seeds, times).solve()

        def along(t: float, y: Tensor, seed: Tensor) -> float:
            return float((seed * run.model.evaluate(t, y.contiguous(), run.given, run.work)).sum())

        g_t0 = g_t1 = g_saves = None
        if t0 is not None:
            start = run.buffers.y[: run.ints[at.N]]
            g_t0 = t0.new_tensor(-along(run.problem.t0.value, start, lam)).reshape(t0.shape)
        if t1 is not None and not times:
            g_t1 = t1.new_tensor(along(run.t, rows[0], seeds[0])).reshape(t1.shape)
        if saves is not None:
            found = [along(t, y, s) for t, y, s in zip(times, rows, seeds, strict=True)]
            g_saves = saves.new_zeros(saves.shape)
            g_saves[: len(found)] = torch.tensor(found, dtype=torch.float64)
        pieces = mu.split_with_sizes([x.numel() for x in params]) if params else ()
        to_params = [piece.view(x.shape) for piece, x in zip(pieces, params, strict=True)]
        return (None, None, None, None, lam.view(y0.shape), g_t0, g_t1, g_saves, *to_params)


def _once_only(sense: SenseAlg) -> str:
    return f"{sense.name} has no second derivative: differentiate twice with sensealg=DiscreteAdjoint()."


def observe(run: Forward, sense: SenseAlg, rows: Tensor) -> Tensor:
    """The rows that a solve returns, with this algorithm's gradient behind them."""
    problem, options = run.problem, run.options
    if options.saves is not None:
        times = list(options.saves.values[: len(rows)])
    elif options.unsaved == "steps":
        times = run.buffers.t[: len(rows)].tolist()
    else:
        times = []
    saves = None if options.saves is None else options.saves.tensor
    inputs = (problem.packed, problem.t0.tensor, problem.t1.tensor, saves, *run.given.params)
    return _Solve.apply(run, sense, rows, times, *inputs)
