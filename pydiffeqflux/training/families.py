"""The families of models that a series can be fitted with, and which options belong to which."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UnknownNameError


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        label: what pictures call it.
        method: the solver that it takes by default.
        own: options that it takes and that not every family does.
        unobserved: how many states it adds to the observed ones by default.
    """

    label: str
    method: str = "tsit5"
    own: frozenset[str] = frozenset()
    unobserved: int = 0


FAMILIES: dict[str, Family] = {
    "node": Family("neural ODE", own=frozenset({"augment"}), unobserved=1),
    "augmented": Family("augmented neural ODE", own=frozenset({"extra_dims"}), unobserved=1),
    "ude": Family("universal ODE", own=frozenset({"augment", "known"})),
    "hamiltonian": Family("Hamiltonian network"),
    "dde": Family("neural DDE", own=frozenset({"lags"})),
    "sde": Family("neural SDE", method="em"),
}

#: Options that belong to some families only.
SPECIAL = tuple(sorted(frozenset[str]().union(*(family.own for family in FAMILIES.values()))))


def family(name: str) -> Family:
    """The family of this name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in FAMILIES:
        raise UnknownNameError("model", name, FAMILIES)
    return FAMILIES[name]


def takers(option: str) -> list[str]:
    """The families that take an option."""
    return [name for name, found in FAMILIES.items() if option in found.own]
