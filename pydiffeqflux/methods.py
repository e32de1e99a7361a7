"""The catalogue of methods: what each is called, its order, and where it comes from.

A method is a small frozen object, e.g. ``Tsit5()``; everywhere a method is taken, its name will do
(``"tsit5"``, or SciML's ``"Tsit5"``). How a method steps is the backend's business.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import ClassVar

from .errors import InvalidArgumentError, UnknownNameError


@dataclass(frozen=True)
class Method:
    """Base of the methods. ``order`` is the order of the solution that is carried on.

    Example:
        >>> from pydiffeqflux import Vern7
        >>> Vern7().name, Vern7().order, Vern7().adaptive, Vern7().implicit
        ('vern7', 7, True, False)
    """

    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 0
    adaptive: ClassVar[bool] = True
    implicit: ClassVar[bool] = False
    #: Whether it solves ``M y' = f`` too, with a matrix M that may be singular.
    takes_mass: ClassVar[bool] = False

    def __str__(self) -> str:
        return self.name


# -- explicit, adaptive -------------------------------------------------------------------------


class Tsit5(Method):
    """Order 5(4), seven stages, first same as last. Tsitouras (2011), Comput. Math. Appl. 62, 770-775."""

    name, order = "tsit5", 5


class Dopri5(Method):
    """Order 5(4). Dormand & Prince (1980), J. Comput. Appl. Math. 6, 19-26."""

    name, aliases, order = "dopri5", ("dp5", "rk45"), 5


class Dopri8(Method):
    """Order 8(5,3), DOP853, dense output of order 7. Hairer, Norsett & Wanner I (1993), section II.5."""

    name, aliases, order = "dopri8", ("dp8", "dop853"), 8


class Bosh3(Method):
    """Order 3(2). Bogacki & Shampine (1989), Appl. Math. Lett. 2, 321-325."""

    name, aliases, order = "bosh3", ("bs3", "rk23"), 3


class Heun(Method):
    """Order 2(1): Heun's method with the Euler step as its error estimate."""

    name, aliases, order = "heun", ("adaptive_heun",), 2


class Fehlberg2(Method):
    """Order 2(1). Fehlberg (1969), NASA TR R-315."""

    name, order = "fehlberg2", 2


class Vern7(Method):
    """Order 7(6), "most efficient", with an order 7 interpolant. Verner (2010), Numer. Algorithms 53."""

    name, order = "vern7", 7


class Vern9(Method):
    """Order 9(8), "most efficient", with an order 9 interpolant. Verner (2010), Numer. Algorithms 53."""

    name, order = "vern9", 9


# -- explicit, fixed step -----------------------------------------------------------------------


class Euler(Method):
    """Order 1, the residual network's step: y + dt f(t, y)."""

    name, order, adaptive = "euler", 1, False


class Midpoint(Method):
    """Order 2, the explicit midpoint rule. Runge (1895)."""

    name, order, adaptive = "midpoint", 2, False


class RK4(Method):
    """Order 4, the classical method. Kutta (1901)."""

    name, order, adaptive = "rk4", 4, False


class ABM4(Method):
    """Order 4 Adams-Bashforth-Moulton predictor-corrector (PECE), started by RK4.

    Hairer, Norsett & Wanner I (1993), section III.1."""

    name, aliases, order, adaptive = "abm4", ("adams_bashforth_moulton", "abm"), 4, False


class Heun2(Method):
    """Order 2, Heun's method: the trapezoidal rule made explicit, for fixed steps. Heun (1900)."""

    name, order, adaptive = "heun2", 2, False


class Heun3(Method):
    """Order 3, Heun's third-order method, for fixed steps. Heun (1900)."""

    name, order, adaptive = "heun3", 3, False


# -- symplectic, fixed step ---------------------------------------------------------------------


class Symplectic(Method):
    """Base of the explicit symplectic methods, for ``dq/dt = v(t, p)``, ``dp/dt = f(t, q)``.

    The state is ``(q, p)`` in the halves of its last dimension, or as a pair. See :class:`SeparableField`."""

    adaptive = False


class SymplecticEuler(Symplectic):
    """Order 1: a kick, then a drift. De Vogelaere (1956); Hairer, Lubich & Wanner (2006), section I.1."""

    name, order = "symplectic_euler", 1


class VelocityVerlet(Symplectic):
    """Order 2, kick-drift-kick, one force a step. Verlet (1967), Phys. Rev. 159, 98-103; Swope et al. (1982)."""

    name, aliases, order = "velocity_verlet", ("verlet", "verlet_leapfrog"), 2


class Leapfrog(Symplectic):
    """Order 2, drift-kick-drift, one force a step. Hairer, Lubich & Wanner (2006), section I.3."""

    name, aliases, order = "leapfrog", ("leapfrog_drift_kick_drift", "position_verlet"), 2


class Ruth3(Symplectic):
    """Order 3, three forces a step. Ruth (1983), IEEE Trans. Nucl. Sci. 30, 2669-2671."""

    name, order = "ruth3", 3


class CandyRoz4(Symplectic):
    """Order 4, three forces a step. Forest & Ruth (1990), Physica D 43; Candy & Rozmus (1991), J. Comput. Phys. 92."""

    name, aliases, order = "candyroz4", ("forest_ruth", "yoshida4"), 4


class McAte4(Symplectic):
    """Order 4 where the velocity is a constant matrix times p (quadratic kinetic energy), 3 elsewhere; four forces.

    McLachlan & Atela (1992), Nonlinearity 5, 541-562."""

    name, aliases, order = "mcate4", ("mclachlan_atela4",), 4


class Yoshida6(Symplectic):
    """Order 6, seven forces a step. Yoshida (1990), Phys. Lett. A 150, 262-268, solution A."""

    name, order = "yoshida6", 6


class KahanLi8(Symplectic):
    """Order 8, seventeen forces a step. Kahan & Li (1997), Math. Comput. 66, 1089-1099."""

    name, order = "kahanli8", 8


# -- stiff, fixed step --------------------------------------------------------------------------


class FixedImplicitEuler(Method):
    """Order 1, L-stable, fixed steps."""

    name, order, adaptive, implicit = "implicit_euler", 1, False, True


class FixedImplicitMidpoint(Method):
    """Order 2, A-stable and symplectic, fixed steps: the Gauss method with one stage."""

    name, order, adaptive, implicit = "implicit_midpoint", 2, False, True


class FixedTrapezoid(Method):
    """Order 2, A-stable, fixed steps: the trapezoidal rule."""

    name, order, adaptive, implicit = "trapezoid", 2, False, True


class FixedRadauIIA3(Method):
    """Order 3, L-stable, fixed steps. Hairer & Wanner II (1996), section IV.5."""

    name, order, adaptive, implicit = "radauiia3", 3, False, True


class FixedRadauIIA5(Method):
    """Order 5, L-stable, fixed steps. Hairer & Wanner II (1996), section IV.5."""

    name, order, adaptive, implicit = "radauiia5", 5, False, True


class FixedGauss4(Method):
    """Order 4, A-stable and symplectic, fixed steps: Gauss with two stages. Hairer & Wanner II, section IV.5."""

    name, aliases, order, adaptive, implicit = "gl4", ("gauss4",), 4, False, True


class FixedGauss6(Method):
    """Order 6, A-stable and symplectic, fixed steps: Gauss with three stages. Hairer & Wanner II, section IV.5."""

    name, aliases, order, adaptive, implicit = "gl6", ("gauss6",), 6, False, True


class FixedSDIRK2(Method):
    """Order 2, L-stable, two stages, fixed steps. Alexander (1977), SIAM J. Numer. Anal. 14, 1006-1021."""

    name, order, adaptive, implicit = "sdirk2", 2, False, True


class FixedTRBDF2(Method):
    """Order 2, L-stable, fixed steps: TR-BDF2. Bank et al. (1985); Hosea & Shampine (1996)."""

    name, order, adaptive, implicit = "trbdf2", 2, False, True


# -- stiff, adaptive ----------------------------------------------------------------------------


class Rosenbrock23(Method):
    """Order 2(3), L-stable, one LU a step: ode23s. Shampine & Reichelt (1997), SIAM J. Sci. Comput. 18."""

    name, aliases, order, implicit, takes_mass = "rosenbrock23", ("ode23s",), 2, True, True


class Rodas5P(Method):
    """Order 5(4), stiffly accurate, eight stages. Steinebach (2023), BIT Numer. Math. 63, 27."""

    name, order, implicit, takes_mass = "rodas5p", 5, True, True


class KenCarp4(Method):
    """Order 4(3), L-stable ESDIRK, six stages. Kennedy & Carpenter (2003), Appl. Numer. Math. 44."""

    name, order, implicit, takes_mass = "kencarp4", 4, True, True


class Kvaerno5(Method):
    """Order 5(4), stiffly accurate ESDIRK, seven stages. Kvaerno (2004), BIT Numer. Math. 44, 489-502."""

    name, order, implicit, takes_mass = "kvaerno5", 5, True, True


class QNDF(Method):
    """Orders 1 to 5, variable, quasi-constant step: the NDF family of ode15s.

    Shampine & Reichelt (1997), SIAM J. Sci. Comput. 18, 1-22."""

    name, aliases, order, implicit, takes_mass = "qndf", ("bdf", "ndf"), 5, True, True


@dataclass(frozen=True)
class AutoSwitch(Method):
    """A non-stiff method that hands over to a stiff one when the problem turns stiff, and back.

    The estimate of the dominant eigenvalue comes from two stages of the explicit step (Shampine 1977;
    Hairer & Wanner II, section IV.2).
    """

    nonstiff: Method
    stiff: Method
    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.nonstiff.implicit or not self.stiff.implicit:
            raise InvalidArgumentError(
                f"AutoSwitch takes an explicit method, then an implicit one; got {self.nonstiff} and {self.stiff}."
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        return min(self.nonstiff.order, self.stiff.order)

    def __str__(self) -> str:
        return f"Auto{type(self.nonstiff).__name__}({type(self.stiff).__name__})"


@dataclass(frozen=True)
class SciMLMethod(Method):
    """A solver of OrdinaryDiffEq.jl by its Julia name, for ``backend="julia"`` only.

    Args:
        text: as written in Julia: ``"FBDF"``, ``"Rodas4()"``, ``"KenCarp47(max_newton_iter = 20)"``. Names of solvers
            and literal arguments are understood, nothing else.

    Example:
        >>> from pydiffeqflux import SciMLMethod
        >>> str(SciMLMethod("FBDF"))
        'FBDF'
    """

    text: str

    def __str__(self) -> str:
        return self.text


def AutoTsit5(stiff: Method | str) -> AutoSwitch:
    """``AutoTsit5(Rosenbrock23())``, as in SciML: Tsit5 while the problem is not stiff.

    Example:
        >>> from pydiffeqflux import AutoTsit5, Rosenbrock23
        >>> str(AutoTsit5(Rosenbrock23()))
        'AutoTsit5(Rosenbrock23)'
    """
    return AutoSwitch(Tsit5(), resolve(stiff))


def AutoDopri5(stiff: Method | str) -> AutoSwitch:
    """As :func:`AutoTsit5`, with Dopri5 (SciML's ``AutoDP5``)."""
    return AutoSwitch(Dopri5(), resolve(stiff))


def AutoVern7(stiff: Method | str) -> AutoSwitch:
    """As :func:`AutoTsit5`, with Vern7."""
    return AutoSwitch(Vern7(), resolve(stiff))


def AutoVern9(stiff: Method | str) -> AutoSwitch:
    """As :func:`AutoTsit5`, with Vern9."""
    return AutoSwitch(Vern9(), resolve(stiff))


CATALOGUE: tuple[type[Method], ...] = (
    Tsit5,
    Dopri5,
    Dopri8,
    Bosh3,
    Heun,
    Fehlberg2,
    Vern7,
    Vern9,
    Euler,
    Midpoint,
    RK4,
    Heun2,
    Heun3,
    ABM4,
    SymplecticEuler,
    VelocityVerlet,
    Leapfrog,
    Ruth3,
    CandyRoz4,
    McAte4,
    Yoshida6,
    KahanLi8,
    FixedImplicitEuler,
    FixedImplicitMidpoint,
    FixedTrapezoid,
    FixedRadauIIA3,
    FixedRadauIIA5,
    FixedGauss4,
    FixedGauss6,
    FixedSDIRK2,
    FixedTRBDF2,
    Rosenbrock23,
    Rodas5P,
    KenCarp4,
    Kvaerno5,
    QNDF,
)


def taking_mass() -> list[str]:
    """The names of the methods that solve ``M y' = f``."""
    return [kind.name for kind in CATALOGUE if kind.takes_mass]


_AUTO = {"autotsit5": AutoTsit5, "autodp5": AutoDopri5, "autodopri5": AutoDopri5}
_AUTO |= {"autovern7": AutoVern7, "autovern9": AutoVern9}
_BY_NAME = {alias: kind for kind in CATALOGUE for alias in (kind.name, *kind.aliases)}


#: The backends that know Julia's own names.
JULIA = ("julia", "diffeqflux")
#: Names that mean fixed steps here (torchdiffeq's), and solvers with error control in OrdinaryDiffEq.
_ADAPTIVE_IN_JULIA = ("Midpoint", "RK4", "Trapezoid", "TRBDF2", "RadauIIA3", "RadauIIA5")


def resolve(method: Method | type[Method] | str, backend: str = "auto") -> Method:
    """A method object for a name such as ``"tsit5"``, ``"Tsit5"`` or ``"AutoTsit5(Rosenbrock23)"``.

    With ``backend="julia"`` any other name is one of Julia's own, which Julia will know or not; and so is one that is
    spelled as there and steps adaptively there: ``"RK4"`` controls its error, ``"rk4"`` takes fixed steps.

    Raises:
        UnknownNameError: a name that is none of them (the nearest one is in the message).
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, type) and issubclass(method, Method):
        return method()
    if isinstance(method, str):
        written = method.strip().replace("()", "")
        if backend in JULIA and written in _ADAPTIVE_IN_JULIA:
            return SciMLMethod(written)
        text = written.lower()
        if text in _BY_NAME:
            return _BY_NAME[text]()
        auto = re.fullmatch(r"(auto\w+)\((\w+)\)", text)
        if auto and auto[1] in _AUTO:
            with contextlib.suppress(UnknownNameError) if backend in JULIA else contextlib.nullcontext():
                return _AUTO[auto[1]](auto[2])
        if backend in JULIA:
            return SciMLMethod(method)
    raise UnknownNameError("method", method, [*_BY_NAME, "AutoTsit5(Rosenbrock23)"])
