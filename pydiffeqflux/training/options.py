"""What can be chosen for a fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..backends import registry
from ..errors import InvalidArgumentError
from ..methods import resolve


@dataclass(frozen=True)
class FitOptions:
    """The choices of a fit; the defaults suit some tens to hundreds of points.

    Args:
        backend: as for :func:`pydiffeqflux.solve`.
        method: the solver, by name.
        width, depth: hidden layers of the network and their size.
        augment: how many states are added that nobody observed.
        epochs: training epochs on trajectories (the first nine tenths by multiple shooting).
        seed: of the network's initial weights, the only thing that is drawn at random.
        lr: Adam's step size at the start.
        rtol, atol: the solver's tolerances, in scaled units.
        transform: ``"auto"`` (logarithms of states that are positive throughout), ``"log"`` or ``"none"``.
        dt: step of a fixed-step method in the data's unit of time; a tenth of the usual spacing where None.

    Raises:
        InvalidArgumentError, UnknownNameError, BackendUnavailableError

    Example:
        >>> from pydiffeqflux.training import FitOptions
        >>> FitOptions(epochs=10).method
        'tsit5'
    """

    backend: str = "auto"
    method: str = "tsit5"
    width: int = 32
    depth: int = 2
    augment: int = 1
    epochs: int = 800
    seed: int = 0
    lr: float = 1e-2
    rtol: float = 1e-4
    atol: float = 1e-5
    transform: str = "auto"
    dt: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("depth", 1), ("augment", 0), ("epochs", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidArgumentError(f"{name}={value!r} must be a whole number, at least {least}.")
        for name in ("lr", "rtol", "atol", "dt"):
            value = getattr(self, name)
            if name == "dt" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise InvalidArgumentError(f"{name}={value!r} must be a positive number.")
        resolve(self.method)
        registry.get(self.backend)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]
