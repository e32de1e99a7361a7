"""The coefficients of ``eager/rk`` as the loops want them: one flat table, and a few numbers."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass

import numpy as np

from ... import methods
from ...methods import Method
from ..eager.catalogue import EXPLICIT
from ..eager.rk.tableau import ExplicitTableau, with_hermite
from ..eager.rosenbrock.tableau import RosenbrockTableau
from .lang.words import Ints, Wide
from .loops import layout as at

#: The module in ``eager/rosenbrock`` that holds each method's tableau.
ROSENBROCK: dict[type[Method], str] = {methods.Rosenbrock23: "rosenbrock23", methods.Rodas5P: "rodas5p"}


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
        self.implicit = bool(self.ints[at.FAMILY])
        self.address = self.tab.ctypes.data
        #: How many states the loop needs room for to work in.
        self.scratch = max(2, int(self.ints[at.DEGREE]))


def table_of(method: Method) -> Table | None:
    """The table of a method; None for a method that has none."""
    return _table(type(method).__name__)


@functools.cache
def _table(name: str) -> Table | None:
    kind = getattr(methods, name)
    if kind in ROSENBROCK:
        found = importlib.import_module(f"..eager.rosenbrock.{ROSENBROCK[kind]}", __package__)
        return lay_out_rosenbrock(found.TABLEAU)
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


def lay_out_rosenbrock(tableau: RosenbrockTableau) -> Table:
    """The flat table of a Rosenbrock method; the slot after its stages is for the slope at the start of the step."""
    stages = len(tableau.c)
    every = stages + 1
    a, couplings = np.zeros((every, every)), np.zeros((every, every))
    for i in range(stages):
        a[i, :i], couplings[i, :i] = tableau.a[i], np.multiply(tableau.gamma, tableau.coupling[i])
    weights = np.zeros((3, every))
    weights[0, :stages], weights[1, :stages] = tableau.b, tableau.error
    dense = np.zeros((every, len(tableau.dense[0])))
    dense[:stages] = tableau.dense
    ints = np.zeros(at.INTS, dtype=np.int64)
    ints[[at.STAGES, at.EXTRA, at.FSAL, at.ERRORS]] = stages, 1, tableau.fsal, 1
    ints[[at.DEGREE, at.AT_END, at.FAMILY, at.CARRY]] = dense.shape[1], -1, 1, stages
    parts = [(*tableau.c, 0.0), a.ravel(), weights.ravel(), dense.ravel(), couplings.ravel(), (*tableau.d, 0.0)]
    tab = np.concatenate([*parts, [tableau.gamma]]).astype(np.float64)
    return Table(tab, ints, stages, every, tableau.fsal, tableau.error_order, True, dense)
