"""The Brownian path of one solve: increments, and what a method asks for besides, between any two times."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidArgumentError, ShapeError
from ...tracking import reading
from .tree import DEPTH

#: A path of a seed is resolved to this part of the time span.
RESOLUTION = 2.0**-DEPTH


class Path:
    """Increments of a Brownian motion between times of a solve.

    Args:
        motion: ``motion(ta, tb)`` with ``ta <= tb``, and with ``return_U=True`` or ``return_A=True`` where an area
            is asked for.
        marks: the times at which steps are bound to end. A step that ends there but for rounding ends there: or
            the path would be asked for what lies between the two.
        resolution: steps shorter than that are not resolved.
        seed: where it came from, if that was a seed.
    """

    def __init__(
        self, motion: Callable[..., Any], marks: Sequence[float], resolution: float = 0.0, seed: int | None = None
    ):
        self.motion, self.resolution, self.seed = motion, resolution, seed
        self.marks = sorted(set(marks))

    def between(self, ta: float, tb: float) -> Tensor:
        """``W(tb) - W(ta)``."""
        return self.motion(ta, tb) if ta <= tb else -self.motion(tb, ta)

    def increment(self, t: float, dt: float) -> Tensor:
        """``W(t + dt) - W(t)``, also for a negative step."""
        return self.between(*self._ends(t, dt))

    def with_integral(self, t: float, dt: float) -> tuple[Tensor, Tensor]:
        """The increment and the integral of ``W(s) - W(t)`` over the step (``I_(1,0)`` in Kloeden & Platen)."""
        ta, tb = self._ends(t, dt)
        w, u = self.motion(ta, tb, return_U=True)
        return w, u

    def with_levy_area(self, t: float, dt: float) -> tuple[Tensor, Tensor]:
        """The increment and (an approximation of) its Levy area ``(*, m, m)``."""
        ta, tb = self._ends(t, dt)
        w, a = self.motion(ta, tb, return_A=True)
        return w, a

    def _ends(self, t: float, dt: float) -> tuple[float, float]:
        return self._marked(t, dt), self._marked(t + dt, dt)

    def _marked(self, t: float, dt: float) -> float:
        i = bisect.bisect_left(self.marks, t)
        for mark in self.marks[max(i - 1, 0) : i + 1]:
            if abs(mark - t) <= 1e-8 * abs(dt):
                return mark
        return t


def checked(motion: Any, t0: float, t1: float, like: Tensor, shape: tuple[int, ...], area: str) -> Callable[..., Any]:
    """The user's path, if it is one for this problem and this method.

    Raises:
        InvalidArgumentError: it does not reach over the time span, or lacks an area that the method needs.
        ShapeError: its increments have another shape, dtype or device.
    """
    wanted = {"space-time": ("return_U", "space-time"), "levy": ("return_A", "davie' or 'foster")}.get(area)
    with warnings.catch_warnings():
        # torchsde answers beyond the ends of its interval, with a warning.
        warnings.simplefilter("error")
        try:
            got = motion(t0, t1) if wanted is None else motion(t0, t1, **{wanted[0]: True})
        except (UserWarning, RuntimeError, ValueError) as why:
            raise InvalidArgumentError(f"brownian cannot be asked for t_span=({t0}, {t1}): {why}") from why
        except TypeError as why:
            raise _without_area(wanted, why) from why
    w, extra = (got, None) if wanted is None else got
    if wanted is not None and extra is None:
        raise _without_area(wanted, None)
    if not isinstance(w, Tensor) or tuple(w.shape) != shape or w.dtype != like.dtype or w.device != like.device:
        has = f"{tuple(w.shape)} of {w.dtype} on {w.device}" if isinstance(w, Tensor) else type(w).__name__
        raise ShapeError(
            f"brownian gives increments of shape {has}; this problem's noise has shape {shape} of {like.dtype} on"
            f" {like.device}: BrownianInterval(t0, t1, size={shape}, dtype={like.dtype})."
        )
    return motion


def _without_area(wanted: tuple[str, str] | None, why: Exception | None) -> InvalidArgumentError:
    if wanted is None:
        return InvalidArgumentError(f"brownian must be callable as brownian(ta, tb): {why}")
    return InvalidArgumentError(
        f"this method needs more of brownian than increments: brownian(ta, tb, {wanted[0]}=True), such as that of"
        f" BrownianInterval(..., levy_area_approximation='{wanted[1]}')."
    )


def new_seed() -> int:
    """A seed from torch's global generator, so that ``torch.manual_seed`` makes a program reproducible.

    Raises:
        UnsupportedError: under ``torch.func.vmap``, where it cannot be told whether all samples should have the same.
    """
    with reading("an SDEProblem without a seed", "give it one, and every sample sees that path"):
        return int(torch.randint(0, 2**31 - 1, ()))
