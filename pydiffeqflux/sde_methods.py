"""The catalogue of methods for stochastic equations: names, contracts, orders, sources.

Each declares the noise and the interpretation that it is right for: a method for Ito equations converges to
something else on a Stratonovich one, so a pair that does not go together is an error, never a fallback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import MethodNoiseError, UnknownNameError, UnsupportedError
from .methods import Method

#: How the Brownian motion enters: ``diagonal`` (one entry each), ``scalar`` (one for all), ``additive`` (by a
#: matrix that does not depend on the state), ``general`` (by any matrix).
NOISES = ("diagonal", "scalar", "additive", "general")
INTERPRETATIONS = ("ito", "stratonovich")
_COMMUTATIVE = ("diagonal", "scalar", "additive")


@dataclass(frozen=True)
class SDEMethod(Method):
    """Base of the methods for :class:`~pydiffeqflux.SDEProblem`.

    Args:
        adaptive: choose the steps by an error estimate (the tolerances are the solve's) instead of taking steps
            of size ``dt``. SRA and SRI methods have an estimate of their own; the others compare one step with
            two of half its size, on the same Brownian path.

    ``order`` is the order on an equation without noise; :meth:`strong_order` and ``weak_order`` those with it.

    Example:
        >>> from pydiffeqflux import SDEHeun, SOSRI
        >>> SOSRI().strong_order("diagonal"), SOSRI().noises, SOSRI().interpretations
        (1.5, ('diagonal', 'scalar'), ('ito',))
        >>> SDEHeun().adaptive, SDEHeun(adaptive=True).strong_order("general")
        (False, 0.5)
    """

    adaptive: bool = False  # type: ignore[misc]
    noises: ClassVar[tuple[str, ...]] = NOISES
    interpretations: ClassVar[tuple[str, ...]] = INTERPRETATIONS
    #: The strong order on general noise, on additive noise, and on what lies between.
    orders: ClassVar[tuple[float, float, float]] = (0.5, 1.0, 1.0)
    weak_order: ClassVar[float] = 1.0
    #: What it asks of the Brownian motion besides increments: "", "space-time" or "levy".
    area: ClassVar[str] = ""

    def strong_order(self, noise: str) -> float:
        """The order of the pathwise error at a fixed time on noise of this kind."""
        general, additive, between = self.orders
        return {"general": general, "additive": additive}.get(noise, between)


@dataclass(frozen=True)
class EM(SDEMethod):
    """Euler-Maruyama, strong order 0.5 (1 for additive noise), for Ito equations. Maruyama (1955)."""

    name, aliases, order = "em", ("euler_maruyama", "euler"), 1
    interpretations = ("ito",)
    orders = (0.5, 1.0, 0.5)


@dataclass(frozen=True)
class Milstein(SDEMethod):
    """Milstein's method, strong order 1, Ito and Stratonovich; products with dg/dy come from autograd.

    Milstein (1974), Theory Probab. Appl. 19, 557-562; Kloeden & Platen (1992), chapter 10."""

    name, aliases, order = "milstein", ("rkmil",), 1
    noises = _COMMUTATIVE


@dataclass(frozen=True)
class EulerHeun(SDEMethod):
    """Euler for the drift, Heun for the diffusion: strong order 1 (0.5 for general noise), Stratonovich.

    Kloeden & Platen (1992), "Numerical Solution of Stochastic Differential Equations", chapter 10."""

    name, aliases, order = "euler_heun", ("eulerheun",), 1
    interpretations = ("stratonovich",)


@dataclass(frozen=True)
class SDEHeun(SDEMethod):
    """Heun's method: strong order 1 (0.5 for general noise), Stratonovich.

    Rumelin (1982), SIAM J. Numer. Anal. 19, 604-613; Burrage, Burrage & Tian (2004), Proc. R. Soc. A 460."""

    name, aliases, order = "heun", ("lambaeulerheun", "sdeheun"), 2
    interpretations = ("stratonovich",)


@dataclass(frozen=True)
class SDEMidpoint(SDEMethod):
    """The explicit midpoint rule: strong order 1 (0.5 for general noise), Stratonovich. Rumelin (1982)."""

    name, aliases, order = "midpoint", ("sdemidpoint",), 2
    interpretations = ("stratonovich",)


@dataclass(frozen=True)
class ReversibleHeun(SDEMethod):
    """Algebraically reversible, one evaluation a step; with ``BacksolveAdjoint`` its gradient is exact.

    Strong order 0.5 (1 for additive noise), Stratonovich. Kidger, Foster, Li & Lyons (2021),
    "Efficient and accurate gradients for neural SDEs", arXiv:2105.13493."""

    name, aliases, order = "reversible_heun", ("reversibleheun",), 2
    interpretations = ("stratonovich",)
    orders = (0.5, 1.0, 0.5)


@dataclass(frozen=True)
class LogODE(SDEMethod):
    """The midpoint rule with the Levy area's correction, Stratonovich; for general noise that does not commute.

    The area is an approximation given the path (Davie; Foster), which is right in law and not pathwise.
    Foster, Lyons & Oberhauser (2020), "An optimal polynomial approximation of Brownian motion"."""

    name, aliases, order = "log_ode", ("logode",), 2
    interpretations = ("stratonovich",)
    area = "levy"


@dataclass(frozen=True)
class _RungeKutta(SDEMethod):
    adaptive: bool = True  # type: ignore[misc]
    interpretations = ("ito",)
    orders = (0.5, 1.5, 1.5)
    weak_order = 2.0
    area = "space-time"


@dataclass(frozen=True)
class SRA1(_RungeKutta):
    """Strong order 1.5 for additive noise, two stages. Roessler (2010), SIAM J. Numer. Anal. 48."""

    name, order = "sra1", 2
    noises = ("additive",)


@dataclass(frozen=True)
class SRA3(_RungeKutta):
    """Strong order 1.5 for additive noise, order 3 without. Roessler (2010), SIAM J. Numer. Anal. 48."""

    name, order = "sra3", 3
    noises = ("additive",)


@dataclass(frozen=True)
class SOSRA(_RungeKutta):
    """Strong order 1.5 for additive noise, three stages, the stability region optimised.

    Rackauckas & Nie (2020), "Stability-optimized high order methods and stiffness detection for pathwise stiff
    stochastic differential equations", arXiv:1804.04344."""

    name, order = "sosra", 2
    noises = ("additive",)


@dataclass(frozen=True)
class SRIW1(_RungeKutta):
    """Strong order 1.5 for diagonal and scalar noise, order 2 without. Roessler (2010), SIAM J. Numer. Anal. 48.

    Entry i of a diagonal diffusion must depend on entry i of the state only."""

    name, aliases, order = "sriw1", ("sri",), 2
    noises = ("diagonal", "scalar")


@dataclass(frozen=True)
class SRIW2(_RungeKutta):
    """As :class:`SRIW1`, of order 3 without noise: torchsde's ``srk``. Roessler (2010), SIAM J. Numer. Anal. 48."""

    name, order = "sriw2", 3
    noises = ("diagonal", "scalar")


@dataclass(frozen=True)
class SOSRI(_RungeKutta):
    """As :class:`SRIW1`, the stability region optimised. Rackauckas & Nie (2020), arXiv:1804.04344."""

    name, order = "sosri", 2
    noises = ("diagonal", "scalar")


@dataclass(frozen=True)
class SciMLSDEMethod(SDEMethod):
    """A solver of StochasticDiffEq.jl by its Julia name, for ``backend="julia"`` only.

    Args:
        text: as written in Julia: ``"LambaEM"``, ``"RKMilCommute()"``, ``"SKenCarp()"``. Names of solvers and literal
            arguments are understood, nothing else. Whether it suits the noise is Julia's to say.

    Example:
        >>> from pydiffeqflux import SciMLSDEMethod
        >>> str(SciMLSDEMethod(text="LambaEM"))
        'LambaEM'
    """

    adaptive: bool = True  # type: ignore[misc]
    text: str = ""

    def __str__(self) -> str:
        return self.text


CATALOGUE: tuple[type[SDEMethod], ...] = (
    EM,
    Milstein,
    EulerHeun,
    SDEHeun,
    SDEMidpoint,
    ReversibleHeun,
    LogODE,
    SRA1,
    SRA3,
    SOSRA,
    SRIW1,
    SRIW2,
    SOSRI,
)
_BY_NAME = {alias: kind for kind in CATALOGUE for alias in (kind.name, *kind.aliases)}


def known(noise: str, interpretation: str) -> list[str]:
    """The names of the methods for this noise and interpretation."""
    return [kind.name for kind in CATALOGUE if noise in kind.noises and interpretation in kind.interpretations]


def is_known(name: str) -> bool:
    """Whether a method for stochastic equations has this name."""
    return name.strip().lower().replace("()", "") in _BY_NAME


def default(noise: str, interpretation: str) -> SDEMethod:
    """The method of choice: the highest order there is, with adaptive steps."""
    if interpretation == "stratonovich":
        return SDEHeun(adaptive=True)
    return {"additive": SOSRA(), "general": EM()}.get(noise, SOSRI())


def resolve(method: Method | type[Method] | str, backend: str = "auto") -> SDEMethod:
    """A method object for a name such as ``"sosri"`` or ``"SOSRI"``.

    With ``backend="julia"`` any other name is one of Julia's own, which Julia will know or not.

    Raises:
        UnknownNameError: a name that is none of them (the nearest one is in the message).
        UnsupportedError: a method for ordinary differential equations.
    """
    if isinstance(method, type) and issubclass(method, Method):
        method = method()
    if isinstance(method, SDEMethod):
        return method
    if isinstance(method, Method):
        raise UnsupportedError(
            f"method={method} is {type(method).__name__}, a method for ODEs, which knows nothing of the noise; for an"
            f" SDEProblem give one of {', '.join(kind.__name__ for kind in CATALOGUE)}."
        )
    if isinstance(method, str) and is_known(method):
        return _BY_NAME[method.strip().lower().replace("()", "")]()
    if isinstance(method, str) and backend == "julia":
        return SciMLSDEMethod(text=method)
    raise UnknownNameError("method", method, _BY_NAME)


def check(method: SDEMethod, noise: str, interpretation: str) -> None:
    """That ``method`` converges to the solution of such an equation.

    Raises:
        MethodNoiseError: it does not; the message names those that do.
    """
    if isinstance(method, SciMLSDEMethod):
        return  # Julia knows
    rather = f"use one of {', '.join(known(noise, interpretation))}"
    if interpretation not in method.interpretations:
        raise MethodNoiseError(
            f"method={method} solves {' and '.join(method.interpretations)} equations, and this problem has"
            f" interpretation={interpretation!r}: {rather}, or rewrite the drift for the other interpretation."
        )
    if noise not in method.noises:
        raise MethodNoiseError(
            f"method={method} is for {', '.join(method.noises)} noise, and this problem has noise={noise!r}: {rather}."
        )
    if method.adaptive and isinstance(method, LogODE):
        raise MethodNoiseError(
            "LogODE(adaptive=True): the Levy area of a step is drawn anew, not made up of those of its halves, and so"
            " comparing them says nothing of the error: take fixed steps, LogODE() and dt, or SDEHeun(adaptive=True)."
        )
    if method.adaptive and isinstance(method, EM) and noise != "additive":
        raise MethodNoiseError(
            f"EM(adaptive=True) with noise={noise!r}: where steps are chosen by looking at the path, Euler-Maruyama"
            f" converges to something else than the solution (Gaines & Lyons 1997): take fixed steps, EM() and dt, or"
            f" {rather}."
        )
