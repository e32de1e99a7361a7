"""The catalogue's methods in Julia's words, and Julia's own solvers."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import JuliaError, UnknownNameError, UnsupportedError
from ...methods import AutoSwitch, Method, SciMLMethod
from .session import Session

#: The solver of OrdinaryDiffEq that is the same method, for those with another name there.
_NAMES = {
    "tsit5": "Tsit5",
    "dopri5": "DP5",
    "dopri8": "DP8",
    "bosh3": "BS3",
    "heun": "Heun",
    "vern7": "Vern7",
    "vern9": "Vern9",
    "euler": "Euler",
    "midpoint": "Midpoint",
    "rk4": "RK4",
    "heun2": "Heun",
    "abm4": "ABM43",
    "implicit_euler": "ImplicitEuler",
    "implicit_midpoint": "ImplicitMidpoint",
    "trapezoid": "Trapezoid",
    "radauiia3": "RadauIIA3",
    "radauiia5": "RadauIIA5",
    "trbdf2": "TRBDF2",
    "rosenbrock23": "Rosenbrock23",
    "rodas5p": "Rodas5P",
    "kencarp4": "KenCarp4",
    "kvaerno5": "Kvaerno5",
    "qndf": "QNDF",
}


@dataclass(frozen=True)
class Solver:
    """A solver that Julia holds."""

    handle: int
    #: It wants the Jacobian.
    implicit: bool
    #: It takes a mass matrix.
    massive: bool
    #: It is one for fully implicit equations, and for no others.
    fully: bool


class Solvers:
    """Julia's solvers by what they are called, each made once."""

    def __init__(self, session: Session):
        self._session = session
        self._known: dict[str, Solver] = {}

    def get(self, method: Method) -> Solver:
        """The solver for a method.

        Raises:
            UnsupportedError: a method of the catalogue that OrdinaryDiffEq does not have.
            UnknownNameError: a name that OrdinaryDiffEq does not know.
        """
        text = written(method)
        if text not in self._known:
            try:
                handle = self._session.call("bridge_algorithm", text)
            except JuliaError as why:
                if "unknown solver" not in str(why):
                    raise
                names = self._session.call("bridge_names").split()
                raise UnknownNameError("method", text, [*names, *_NAMES]) from why
            self._known[text] = Solver(handle, *map(bool, self._session.call("bridge_kind", handle)))
        return self._known[text]


def written(method: Method) -> str:
    """A method as one writes it in Julia."""
    if isinstance(method, SciMLMethod):
        return method.text
    if isinstance(method, AutoSwitch):
        first = written(method.nonstiff)
        return f"Auto{first}({written(method.stiff)}())"
    name = _NAMES.get(method.name)
    if name is None:
        raise UnsupportedError(
            f"method={method} does not exist in OrdinaryDiffEq: take one of {', '.join(sorted(_NAMES))}, any solver of"
            f" OrdinaryDiffEq by its own name, or backend='torch'."
        )
    return name
