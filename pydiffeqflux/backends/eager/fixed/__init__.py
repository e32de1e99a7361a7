"""Methods for fixed steps that are not explicit Runge-Kutta ones: implicit ones, and Adams methods."""

from __future__ import annotations

from .... import methods
from ....errors import UnsupportedError
from ....methods import Method
from ..stepper import Stepper
from . import gauss_legendre, implicit_euler, implicit_midpoint, radau_iia, sdirk2, trapezoid, trbdf2
from .adams import Adams, Corrector
from .tableau import FixedImplicit, ImplicitTableau

_IMPLICIT: dict[type[Method], ImplicitTableau] = {
    methods.FixedImplicitEuler: implicit_euler.TABLEAU,
    methods.FixedImplicitMidpoint: implicit_midpoint.TABLEAU,
    methods.FixedTrapezoid: trapezoid.TABLEAU,
    methods.FixedRadauIIA3: radau_iia.RADAU3,
    methods.FixedRadauIIA5: radau_iia.RADAU5,
    methods.FixedGauss4: gauss_legendre.GAUSS4,
    methods.FixedGauss6: gauss_legendre.GAUSS6,
    methods.FixedSDIRK2: sdirk2.TABLEAU,
    methods.FixedTRBDF2: trbdf2.TABLEAU,
}


def fixed_stepper(method: Method, *, batched: bool = False, second_order: bool = False) -> Stepper:
    """The stepper of ABM4 or of a fixed-step implicit method.

    Args:
        method: from the catalogue.
        batched: the rows of the state (dimension 0) are independent systems: one small Jacobian a row.
        second_order: keep gradients through implicit stages exact for the second derivative too.

    Raises:
        UnsupportedError: a method that is not among these.
    """
    if isinstance(method, methods.ABM4):
        return Adams(max_order=4, corrector=Corrector())
    tableau = _IMPLICIT.get(type(method))
    if tableau is None:
        raise UnsupportedError(f"method={method} is not one of the fixed-step methods of backend='torch'.")
    return FixedImplicit(tableau, batched, second_order)
