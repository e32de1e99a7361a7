"""SciPy's LSODA with a lower bound of the step."""

from __future__ import annotations

from typing import Any

from scipy.integrate import LSODA


class BoundedLSODA(LSODA):  # type: ignore[misc]
    """LSODA that gives up where it would need steps below ``min_step``, as it is meant to.

    SciPy 1.17 takes the argument and forgets it (scipy/scipy#25827). The first step may be smaller: LSODA has not
    found its size yet.
    """

    def __init__(self, *args: Any, min_step: float, **kwargs: Any):
        super().__init__(*args, min_step=min_step, **kwargs)
        self._min_step, self._first = min_step, True

    def _step_impl(self) -> tuple[bool, str | None]:
        before = self.t
        advanced, message = super()._step_impl()
        small = abs(self.t - before) < self._min_step and self.t != self.t_bound
        if advanced and small and not self._first:
            return False, f"The step size fell below min_step={self._min_step}."
        self._first = False
        return advanced, message
