"""Per-sample mode: every row of a batch has its own time, step size, error control, status and statistics."""

from __future__ import annotations

from .solve import solve

__all__ = ["solve"]
