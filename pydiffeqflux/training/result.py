"""What a finished fit hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .delayed import FittedDDE
from .model import FittedODE
from .options import FitOptions
from .run import History
from .series import Series
from .stochastic import FittedSDE


@dataclass(frozen=True)
class FitResult:
    """A finished fit.

    Attributes:
        module: the trained :class:`FittedODE`, :class:`FittedDDE` or :class:`FittedSDE`; ``module()`` is the
            trajectory in data units.
        series: what it was fitted to.
        history: stage, misfit and gap of each epoch.
        report: what ``report.json`` holds.
    """

    module: FittedODE | FittedDDE | FittedSDE
    series: Series
    options: FitOptions
    history: History
    report: dict[str, Any]

    @property
    def r2(self) -> dict[str, float | None]:
        """R squared of each state in data units (None for a state that never changes)."""
        return {name: entry["r2"] for name, entry in self.report["states"].items()}
