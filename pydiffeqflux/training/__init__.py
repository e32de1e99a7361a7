"""From a time series to a trained model: ``fit`` and ``load``, behind ``pydiffeqflux fit``."""

from __future__ import annotations

from .checkpoint import load
from .delayed import FittedDDE
from .fit import Progress, fit
from .interrupt import FitInterrupted
from .model import FittedODE
from .options import FitOptions
from .result import FitResult
from .series import Series, read_csv
from .stochastic import FittedSDE

__all__ = [
    "FitInterrupted",
    "FitOptions",
    "FitResult",
    "FittedDDE",
    "FittedODE",
    "FittedSDE",
    "Progress",
    "Series",
    "fit",
    "load",
    "read_csv",
]
