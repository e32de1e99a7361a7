"""The native Brownian path of a seed at the times of fixed steps, as StochasticDiffEq takes it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.sde import Sde


@dataclass(frozen=True)
class Grid:
    """A path at the times that steps end at.

    Attributes:
        ts: ``(K,)`` float64.
        w: ``(K, M)``, from zero on.
        z: the second motion that methods of order 1.5 ask for, likewise; None for others.
    """

    ts: Tensor
    w: Tensor
    z: Tensor | None


def step_times(t0: float, t1: float, dt: float | None, marks: Iterable[float]) -> list[float]:
    """Steps of ``dt`` that end at every mark between ``t0`` and ``t1``; from mark to mark where ``dt`` is None."""
    times = [t0]
    for end in sorted({m for m in marks if t0 < m < t1} | {t1}):
        start = times[-1]
        # A last step of a rounding error is none.
        count = 1 if dt is None else max(1, math.ceil((end - start) / dt - 1e-8))
        times += [start + k * dt for k in range(1, count)] if dt is not None else []
        times.append(end)
    return times


def grid(sde: Sde, times: list[float], like: Tensor, second: bool) -> Grid:
    """The path of ``sde`` at ``times``.

    Args:
        like: a state.
        second: whether ``z`` is wanted. With the integral ``u`` of the increment over a step of length h it is
            ``sqrt(3) (2 u / h - w)``, which is independent of ``w`` (Roessler 2010; Rackauckas & Nie 2017).
    """
    steps_w, steps_z = [], []
    for begin, end in itertools.pairwise(times):
        if second:
            w, u = sde.path.with_integral(begin, end - begin)
            steps_z.append(_wide(sde, math.sqrt(3) * (2 * u / (end - begin) - w), like))
        else:
            w = sde.path.increment(begin, end - begin)
        steps_w.append(_wide(sde, w, like))
    ts = torch.tensor(times, dtype=torch.float64)
    return Grid(ts, _summed(steps_w), _summed(steps_z) if second else None)


def _wide(sde: Sde, w: Tensor, like: Tensor) -> Tensor:
    """Flat; where one motion drives a row of states entry by entry, it is repeated."""
    return (w.expand(like.shape) if sde.noise == "scalar" else w).reshape(-1)


def _summed(steps: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros_like(steps[0])[None], torch.stack(steps).cumsum(0)]).contiguous()
