"""The contract of a backend: problem, method and options in; solution out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from ..callbacks import Event, PresetTimeCallback
from ..controllers import PIDController
from ..dae_problem import DAEProblem
from ..dde_problem import DDEProblem
from ..methods import Method
from ..problem import ODEProblem, SaveTimes
from ..sde_problem import SDEProblem
from ..sensealg import SenseAlg
from ..solution import Solution

#: What a backend may be asked to solve.
Problem = ODEProblem | SDEProblem | DDEProblem | DAEProblem


@dataclass(frozen=True)
class SolveOptions:
    """The checked arguments of one call of :func:`pydiffeqflux.solve`."""

    saves: SaveTimes | None
    #: Without save times: keep every step ("steps") or only the end ("end").
    unsaved: str
    rtol: float | Tensor
    atol: float | Tensor
    sensealg: SenseAlg | None
    max_steps: int
    events: Sequence[Event] = ()
    doses: Sequence[PresetTimeCallback] = ()
    progress: bool = False
    dt: float | None = None
    dt_min: float = 0.0
    dt_max: float = float("inf")
    stops: Sequence[float] = ()
    controller: PIDController = field(default_factory=PIDController)
    per_sample: bool = False
    dense: bool = True
    norm: Callable[[Any], Any] | None = None
    throw: bool = True
    #: What a backend that translates the function may do where it cannot: None (raise) or "callback".
    fallback: str | None = None
    #: A state that does not satisfy the algebraic equations: refused ("check"), or solved for ("solve").
    initialise: str = "check"
    #: What was concluded from these options alone: they may be asked again.
    memo: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def at(self, saves: SaveTimes | None) -> SolveOptions:
        """These options with save times; the same object for the same ones as the time before."""
        if saves is self.saves:
            return self
        before: SolveOptions | None = self.memo.get("at")
        if before is None or before.saves is not saves:
            before = self.memo["at"] = replace(self, saves=saves)
        return before


class Backend(Protocol):
    """An engine. Stateless as far as a caller can tell."""

    name: str

    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        """Solve; raise a :class:`~pydiffeqflux.errors.SolveError` where ``options.throw`` says so."""
        ...
