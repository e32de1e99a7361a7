"""What a solve returns: the same object from every backend."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import DenseOutputError
from .state import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Status(enum.Enum):
    """How a solve ended."""

    SUCCESS = "success"
    EVENT = "event"
    MAX_STEPS = "max steps"
    STEP_UNDERFLOW = "step underflow"
    NON_FINITE = "non-finite"
    NOT_CONVERGED = "not converged"

    @property
    def ok(self) -> bool:
        """True for an ordinary end: the end of the span, or a terminal event."""
        return self in (Status.SUCCESS, Status.EVENT)


@dataclass
class Stats:
    """What a solve cost, and what was picked for it.

    In per-sample mode ``naccept`` and ``nreject`` are integer tensors of shape ``(B,)``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> problem = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
        >>> stats = pdf.solve(problem, "rk4", dt=0.1, dense=False).stats
        >>> stats.nf, stats.naccept, stats.method, stats.sensealg
        (40, 10, 'rk4', 'DiscreteAdjoint')
    """

    nf: int = 0  #: evaluations of the right-hand side (of an SDE: the drift)
    ng: int = 0  #: evaluations of an SDE's diffusion
    naccept: int | Tensor = 0  #: accepted steps
    nreject: int | Tensor = 0  #: rejected steps
    njac: int = 0  #: Jacobians
    time: float = 0.0  #: wall time of the forward solve, in seconds
    backend: str = ""
    seed: int | None = None  #: of an SDE: the seed of its Brownian path (None: the path was given)
    method: str = ""
    sensealg: str = ""  #: the sensitivity algorithm used, "none" where no gradient was wanted
    reason: str = ""  #: why that one
    fallback: str = ""  #: with ``backend="torch"``: why the solve ran eagerly and was not compiled
    layer: str = ""  #: with ``backend="diffeqflux"``: the layer of DiffEqFlux that was called


@dataclass
class EventRecord:
    """Where one event happened.

    Attributes:
        ts: ``(n,)`` event times, differentiable; in per-sample mode a list with one such tensor a row.
        ys: the state before ``affect`` at each of them, time first; a list likewise.
    """

    ts: Any
    ys: Any


@dataclass
class Solution:
    """The solution of a problem.

    Attributes:
        ts: ``(T,)`` saved times; every step where ``saveat`` was None (in per-sample mode ``(T, B)`` then).
        ys: the state at each of them, time first: ``(T, *y0.shape)``, in ``y0``'s structure.
        stats: what it cost and what was picked.
        status: how it ended.
        events: one :class:`EventRecord` for each event given to ``solve``.

    Calling it, ``sol(t)``, evaluates the dense output: at a number or 0-dim tensor the state, at a 1-D
    tensor or sequence of times the states, time first. With ``DiscreteAdjoint()`` it is differentiable.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> sol = pdf.solve(pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0)), rtol=1e-6)
        >>> round(float(sol(0.5)), 4)
        0.6065
    """

    ts: Tensor
    ys: State
    stats: Stats
    status: Status
    events: list[EventRecord] = field(default_factory=list)
    dense: Callable[[Any], State] | None = field(default=None, repr=False)
    #: In per-sample mode the status of each row.
    statuses: list[Status] | None = None
    #: Of an SDE: its Brownian path, ``brownian(ta, tb)`` being ``W(tb) - W(ta)``.
    brownian: Callable[[float, float], Tensor] | None = field(default=None, repr=False)

    @classmethod
    def later(cls, ys: State, status: Status, make: Callable[[str], Any]) -> Solution:
        """A solution of which ``make("ts")`` and ``make("stats")`` are made when somebody looks at them."""
        new = cls.__new__(cls)
        new.__dict__.update(ys=ys, status=status, _make=make)
        return new

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if name == "events":
            made: Any = []
        elif name in ("ts", "stats") and "_make" in own:
            made = own["_make"](name)
        else:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        own[name] = made
        return made

    def __getstate__(self) -> dict[str, Any]:
        for each in fields(self):
            getattr(self, each.name)
        return {name: value for name, value in self.__dict__.items() if name != "_make"}

    @property
    def success(self) -> bool:
        """Whether the solve reached its end (or a terminal event)."""
        return self.status.ok

    def __call__(self, t: float | Tensor | Sequence[float]) -> State:
        if self.dense is None:
            raise DenseOutputError(
                "this solution kept no dense output: solve with dense=True (the default of solve) and a method that"
                " has one, or give the times as saveat."
            )
        return self.dense(t)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        components: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
        points: int = 400,
    ) -> Axes:
        """Draw the components over time, smoothly where there is dense output, and return the axes.

        Args:
            ax: Matplotlib axes to draw into; new ones where None.
            components: which entries of the flattened state to draw; the first ten where None.
            labels: a name for each drawn component.
            points: how many times the dense output is evaluated at.
        """
        from ._plot import plot_solution  # Matplotlib is slow to import

        return plot_solution(self.ts, self.ys, self.dense, ax, components, labels, points)
