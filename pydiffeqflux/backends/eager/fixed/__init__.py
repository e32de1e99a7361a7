"""Methods for fixed steps that are not explicit Runge-Kutta ones: implicit, Adams and symplectic ones."""

from __future__ import annotations

from .... import methods
from ....errors import UnsupportedError
from ....methods import Method
from ..stepper import Stepper
from . import gauss_legendre, implicit_euler, implicit_midpoint, radau_iia, sdirk2, symplectic, trapezoid, trbdf2
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

_SYMPLECTIC: dict[type[Method], symplectic.Composition] = {
    methods.SymplecticEuler: symplectic.SYMPLECTIC_EULER,
    methods.VelocityVerlet: symplectic.VELOCITY_VERLET,
    methods.Leapfrog: symplectic.LEAPFROG,
    methods.Ruth3: symplectic.RUTH3,
    methods.CandyRoz4: symplectic.CANDY_ROZMUS4,
    methods.McAte4: symplectic.MCLACHLAN_ATELA4,
    methods.Yoshida6: symplectic.YOSHIDA6,
    methods.KahanLi8: symplectic.KAHAN_LI8,
}


def fixed_stepper(method: Method, *, batched: bool = False, second_order: bool = False) -> Stepper:
    """The stepper of ABM4, or of a fixed-step symplectic or implicit method.

    Args:
        method: from the catalogue.
        batched: the rows of the state (dimension 0) are independent systems: one small Jacobian a row.
        second_order: keep gradients through implicit stages exact for the second derivative too.

    Raises:
        UnsupportedError: a method that is not among these.
    """
    if isinstance(method, methods.ABM4):
        return Adams(max_order=4, corrector=Corrector())
    if type(method) in _SYMPLECTIC:
        return symplectic.Symplectic(_SYMPLECTIC[type(method)])
    tableau = _IMPLICIT.get(type(method))
    if tableau is None:
        raise UnsupportedError(f"method={method} is not one of the fixed-step methods of backend='torch'.")
    return FixedImplicit(tableau, batched, second_order)
