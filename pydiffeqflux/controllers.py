"""How the step size follows the error estimate: descriptions; each backend has the arithmetic."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from .errors import InvalidArgumentError


@dataclass(frozen=True)
class PIDController:
    """Proportional, integral and derivative control of the logarithm of the error.

    With e the scaled error norm of an accepted step (1 is the tolerance) and k = order of the estimate + 1,
    ``dt_next / dt = safety * e_n^(-(I+P+D)/k) * e_(n-1)^((P+2D)/k) * e_(n-2)^(-D/k)``, limited to
    ``[factor_min, factor_max]``. The default is the integral controller, which takes the fewest steps where
    the solution is smooth; :func:`PIController` damps the oscillation of the step where stability limits it.
    A rejected step is repeated with ``safety * e^(-1/k)``, at most 1.

    Source: Soderlind, "Digital filters in adaptive time-stepping", ACM Trans. Math. Softw. 29 (2003) 1-26.

    Example:
        >>> from pydiffeqflux import PIDController
        >>> PIDController(pcoeff=0.3, icoeff=0.3, dcoeff=0.0).safety
        0.9
    """

    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    safety: float = 0.9
    factor_min: float = 0.2
    factor_max: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
                raise InvalidArgumentError(f"{name}={value!r} must be a number.")
        if not 0 < self.safety <= 1:
            raise InvalidArgumentError(f"safety={self.safety} must lie in (0, 1].")
        if not 0 < self.factor_min < 1 <= self.factor_max:
            raise InvalidArgumentError(
                f"factor_min={self.factor_min} and factor_max={self.factor_max} must satisfy"
                f" 0 < factor_min < 1 <= factor_max."
            )
        if self.icoeff <= 0:
            raise InvalidArgumentError(f"icoeff={self.icoeff} must be positive, or the step size would drift.")


def IController() -> PIDController:
    """The classical controller: e^(-1/k)."""
    return PIDController(pcoeff=0.0, icoeff=1.0, dcoeff=0.0)


def PIController() -> PIDController:
    """SciML's default for explicit methods: e_n^(-0.7/k) e_(n-1)^(0.4/k) (Hairer & Wanner II, section IV.2)."""
    return PIDController(pcoeff=0.4, icoeff=0.3, dcoeff=0.0)
