"""Breaking points: the times at which a low derivative of the solution jumps, and how they spread.

A jump at time b in the derivative of order k makes one of order k + 1 wherever a delayed time passes b (Bellen &
Zennaro, "Numerical methods for delay differential equations" (2003), section 2.2). A method of order p notices jumps
up to order p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ....dde_problem import Lag


@dataclass(frozen=True)
class Break:
    """A jump at ``time`` of the derivative of this order (0: of the state itself).

    ``clock`` is the time where that carries a gradient.
    """

    time: float
    order: int
    clock: Tensor | None = None


@dataclass
class Breaks:
    """The breaking points behind and ahead.

    Attributes:
        highest: the order of the method.
        close: times that are closer than this count as one.
        passed: those behind, in order.
        ahead: those that constant lags will lead to, in order.
    """

    lags: Sequence[Lag]
    highest: int
    close: float
    differentiable: bool
    passed: list[Break] = field(default_factory=list)
    ahead: list[Break] = field(default_factory=list)

    def root(self, found: Break) -> None:
        """A jump at the current time; plans those that it leads to."""
        self.ahead = [b for b in self.ahead if b.time > found.time + self.close]
        if found.order >= self.highest:
            # Not seen by a delayed state any more, though a function that jumps again may make more of it.
            return
        self.passed.append(found)
        for lag in self.lags:
            if lag.constant:
                self._plan(Break(found.time + lag.value, found.order + 1, self._clock(found, lag)))

    def _clock(self, found: Break, lag: Lag) -> Tensor | None:
        tensor = lag.tensor if self.differentiable else None
        if found.clock is None:
            return None if tensor is None else tensor.double() + found.time
        return found.clock + (lag.value if tensor is None else tensor.double())

    def _plan(self, found: Break) -> None:
        for i, other in enumerate(self.ahead):
            if abs(other.time - found.time) <= self.close:
                if found.order < other.order:
                    self.ahead[i] = found
                return
        self.ahead.append(found)
        self.ahead.sort(key=lambda b: b.time)

    def between(self, first: float, last: float) -> list[Break]:
        """Those ahead strictly between two times."""
        return [b for b in self.ahead if first + self.close < b.time < last - self.close]

    def interval(self, low: float) -> tuple[float, float]:
        """The smooth interval behind that begins at the passed break ``low``: up to the next one, if there is one."""
        later = [b.time for b in self.passed if b.time > low]
        return low, later[0] if later else float("inf")
