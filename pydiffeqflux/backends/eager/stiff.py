"""The stiff methods of this backend, by their names in the catalogue."""

from __future__ import annotations

from ... import methods
from ...errors import UnsupportedError
from ...methods import Method
from ..common.tolerances import Tolerances
from .bdf.qndf import Qndf
from .rosenbrock import rodas5p, rosenbrock23
from .rosenbrock.tableau import Rosenbrock
from .sdirk import kencarp4, kvaerno5
from .sdirk.tableau import Esdirk
from .stepper import Stepper

_ROSENBROCK = {methods.Rosenbrock23: rosenbrock23.TABLEAU, methods.Rodas5P: rodas5p.TABLEAU}
_ESDIRK = {methods.KenCarp4: kencarp4.TABLEAU, methods.Kvaerno5: kvaerno5.TABLEAU}


def stiff_stepper(method: Method, tol: Tolerances, *, batched: bool = False, second_order: bool = False) -> Stepper:
    """The stepper of a stiff method.

    Args:
        method: Rosenbrock23, Rodas5P, KenCarp4, Kvaerno5 or QNDF.
        tol: the solve's tolerances: Newton's method stops at a fraction of them, and QNDF picks its order by them.
        batched: the rows of the state (dimension 0) are independent systems: one small Jacobian a row.
        second_order: keep gradients through implicit stages exact for the second derivative too (Rosenbrock
            methods have every derivative anyway).

    Raises:
        UnsupportedError: a method that is not among these.
    """
    kind = type(method)
    if kind in _ROSENBROCK:
        return Rosenbrock(_ROSENBROCK[kind], batched)
    if kind in _ESDIRK:
        return Esdirk(_ESDIRK[kind], tol, batched, second_order)
    if kind is methods.QNDF:
        return Qndf(tol, batched, second_order)
    raise UnsupportedError(f"method={method} is not one of the stiff methods of backend='torch'.")
