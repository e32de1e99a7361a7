"""The coefficients of ``eager/rk`` as the loops want them: one flat table, and a few numbers."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

import numpy as np

from ...methods import Method
from ..eager.catalogue import EXPLICIT
from ..eager.rk.tableau import ExplicitTableau, with_hermite
from .lang.words import Ints, Wide
from .loops import layout as at


@dataclass
class Table:
    """An explicit method, laid out as ``loops.layout`` says."""

    tab: Wide
    #: The method's part of the loop's integers.
    ints: Ints
    stages: int
    #: Stages together with those that only the interpolant needs.
    every: int
    fsal: bool
    error_order: int
    adaptive: bool
    #: Interpolant weights, one row a stage.
    dense: Wide

    def __post_init__(self) -> None:
        self.address = self.tab.ctypes.data


@functools.cache
def table_of(kind: type[Method]) -> Table | None:
    """The table of a method; None for a method that has none."""
    module = EXPLICIT.get(kind)
    if module is None:
        return None
    return lay_out(importlib.import_module(f"..eager.rk.{module}", __package__).TABLEAU)


def lay_out(tableau: ExplicitTableau) -> Table:
    """The flat table of a tableau, with its interpolant spelled out in slopes."""
    full = tableau if tableau.dense is not None else with_hermite(tableau)
    assert full.dense is not None
    stages, extra = len(full.c), len(full.extra_c)
    every = stages + extra
    a = np.zeros((every, every))
    for i, row in enumerate((*full.a, *full.extra_a)):
        a[i, : len(row)] = row
    weights = np.zeros((3, every))
    errors = [e for e in (full.error, full.error2) if e is not None]
    for i, row in enumerate((full.b, *errors)):
        weights[i, : len(row)] = row
    dense = np.zeros((every, len(full.dense[0])))
    dense[: len(full.dense)] = full.dense
    at_end = [stages + i for i in range(extra) if full.extra_c[i] == 1.0 and full.extra_a[i] == full.b]
    ints = np.zeros(at.INTS, dtype=np.int64)
    ints[[at.STAGES, at.EXTRA, at.FSAL, at.ERRORS]] = stages, extra, full.fsal, len(errors)
    ints[[at.DEGREE, at.AT_END]] = dense.shape[1], at_end[0] if at_end else -1
    tab = np.concatenate([full.c, full.extra_c, a.ravel(), weights.ravel(), dense.ravel()]).astype(np.float64)
    return Table(tab, ints, stages, every, full.fsal, full.error_order, bool(errors), dense)
