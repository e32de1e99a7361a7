"""What can be chosen for a fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .. import methods, sde_methods
from ..backends import registry
from ..errors import InvalidArgumentError
from .families import SPECIAL, Family, family, takers
from .known import NAMED, split

#: The smallest value of each option that is a whole number.
_LEAST = {"width": 1, "depth": 1, "augment": 0, "extra_dims": 1, "epochs": 1, "seed": 0}


@dataclass(frozen=True)
class FitOptions:
    """The choices of a fit; the defaults suit some tens to hundreds of points.

    Args:
        model: the family: ``"node"``, ``"augmented"``, ``"ude"``, ``"hamiltonian"`` (see :class:`FittedODE`),
            ``"dde"`` (see :class:`FittedDDE`) or ``"sde"`` (see :class:`FittedSDE`).
        backend: as for :func:`pydiffeqflux.solve`.
        method: the solver, by name; Tsit5 where None, and for ``"sde"`` EM.
        width, depth: hidden layers of the network and their size.
        augment: how many states are added that nobody observed, with a start that is trained: 1 where None for
            ``"node"``, 0 for ``"ude"``.
        extra_dims: the same for ``"augmented"``, where they start at 0; 1 where None.
        known: the known terms of a ``"ude"``: ``"FILE.py:NAME"`` (see
            :func:`pydiffeqflux.training.known.known_terms`), or ``"kinematics"`` (the states are positions, then their
            velocities).
        lags: the lags of a ``"dde"``, in the data's unit of time.
        epochs: training epochs on trajectories (the first nine tenths by multiple shooting).
        seed: of the network's initial weights, the only thing that is drawn at random.
        lr: Adam's step size at the start.
        rtol, atol: the solver's tolerances, in scaled units.
        transform: ``"auto"`` (logarithms of states that are positive throughout), ``"log"`` or ``"none"``.
        dt: step of a fixed-step method in the data's unit of time; a tenth of the usual spacing where None,
            for ``"sde"`` a quarter.

    Raises:
        InvalidArgumentError, UnknownNameError, BackendUnavailableError

    Example:
        >>> from pydiffeqflux.training import FitOptions
        >>> FitOptions(epochs=10).solver, FitOptions(model="sde").solver
        ('tsit5', 'em')
    """

    model: str = "node"
    backend: str = "auto"
    method: str | None = None
    width: int = 32
    depth: int = 2
    augment: int | None = None
    extra_dims: int | None = None
    known: str | None = None
    lags: tuple[float, ...] | None = None
    epochs: int = 800
    seed: int = 0
    lr: float = 1e-2
    rtol: float = 1e-4
    atol: float = 1e-5
    transform: str = "auto"
    dt: float | None = None

    def __post_init__(self) -> None:
        chosen = family(self.model)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is None and name in SPECIAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidArgumentError(f"{name}={value!r} must be a whole number, at least {least}.")
        for name in ("lr", "rtol", "atol", "dt"):
            value = getattr(self, name)
            if name == "dt" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise InvalidArgumentError(f"{name}={value!r} must be a positive number.")
        self._check_special(chosen)
        self._resolved()
        registry.get(self.backend)

    def _check_special(self, chosen: Family) -> None:
        """Whether options that belong to some families are given to those, and the one that is needed is there."""
        for name in SPECIAL:
            value = getattr(self, name)
            if value is not None and name not in chosen.own:
                raise InvalidArgumentError(
                    f"{name}={value!r} with model={self.model!r}: that is an option of model"
                    f" {' and '.join(repr(taker) for taker in takers(name))}; leave it out."
                )
        if "known" in chosen.own:
            if self.known is None:
                raise InvalidArgumentError(
                    f"model={self.model!r} needs known, the known terms: FILE.py:NAME for a function of your own, or"
                    f" 'kinematics'; without any, take model='node'."
                )
            if self.known not in NAMED:
                split(self.known)
        if "lags" in chosen.own:
            lags = tuple(self.lags) if isinstance(self.lags, tuple | list) else ()
            numbers = all(isinstance(lag, int | float) and math.isfinite(lag) and lag > 0 for lag in lags)
            if not lags or not numbers:
                raise InvalidArgumentError(
                    f"lags={self.lags!r} with model={self.model!r}: give positive numbers, in units of the data's time:"
                    f" how long ago the states were that the rates depend on too."
                )
            object.__setattr__(self, "lags", tuple(float(lag) for lag in lags))

    def _resolved(self) -> methods.Method:
        return sde_methods.resolve(self.solver) if self.model == "sde" else methods.resolve(self.solver, self.backend)

    @property
    def solver(self) -> str:
        """The solver's name."""
        return family(self.model).method if self.method is None else self.method

    @property
    def fixed_steps(self) -> bool:
        return not self._resolved().adaptive

    @property
    def unobserved(self) -> int:
        """How many states are added to the observed ones."""
        given = self.extra_dims if self.model == "augmented" else self.augment
        return family(self.model).unobserved if given is None else given

    @property
    def known_terms(self) -> str | None:
        """``known``, its file wherever the program is called from."""
        if self.known is None or self.known in NAMED:
            return self.known
        file, name = split(self.known)
        return f"{Path(file).resolve()}:{name}"

    def as_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]
