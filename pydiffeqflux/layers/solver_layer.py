"""What every layer around an ODE has in common: a time span, a method, tolerances, and the options of ``solve``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import sensealg as sensealgs
from ..dae_problem import DAEProblem
from ..dde_problem import DDEProblem
from ..errors import InvalidArgumentError, UnknownOptionError
from ..methods import Method, resolve
from ..problem import ODEProblem, TimeLike, span_ends
from ..sensealg import SenseAlg
from ..solution import Solution
from ..solve import OPTIONS, solve
from ..state import State, map_state

#: A layer returns states and keeps nothing else.
LEAN = {"dense": False, "save_everystep": False}


class SolverLayer(nn.Module):
    """Base of the layers that solve an ODE: keeps what they hand to :func:`pydiffeqflux.solve`.

    Args:
        t_span: ``(t0, t1)``, numbers or tensors (an ``nn.Parameter`` among them is trained).
        method, saveat, rtol, atol, sensealg, backend: as for :func:`pydiffeqflux.solve`.
        batched: rows of the state are independent systems (see :class:`ODEProblem`).
        **options: further keyword arguments of :func:`pydiffeqflux.solve`, such as ``dt`` or ``max_steps``.

    Raises:
        InvalidTimesError, UnknownNameError: for ``t_span``, ``method`` and ``sensealg``.
        UnknownOptionError: an option that ``solve`` does not take.
    """

    #: Keyword arguments that a layer takes besides those of ``solve`` (for the message about a wrong one).
    own_options: ClassVar[tuple[str, ...]] = ("batched",)

    def __init__(
        self,
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str = "tsit5",
        *,
        saveat: Tensor | Sequence[TimeLike] | float | None = None,
        rtol: float | Tensor = 1e-3,
        atol: float | Tensor = 1e-6,
        sensealg: SenseAlg | str | None = None,
        backend: str = "auto",
        batched: bool = False,
        **options: Any,
    ):
        super().__init__()
        check_options(type(self).__name__, options, self.own_options)
        span_ends(t_span)
        # Set as attributes of their own, so that a Parameter among them is registered (and moved, and trained).
        if isinstance(t_span, Tensor):
            self.span = t_span
        else:
            self.t0, self.t1 = t_span
        self.saveat = saveat
        self.method = resolve(method, backend)
        self.rtol, self.atol = rtol, atol
        self.sensealg, self.backend = sensealgs.resolve(sensealg), backend
        self.batched = batched
        self.options = options

    @property
    def t_span(self) -> Any:
        """``(t0, t1)`` as it was given."""
        return self.span if hasattr(self, "span") else (self.t0, self.t1)

    def solve_rhs(self, rhs: Callable[[Any, Any], Any], y0: State, **options: Any) -> Solution:
        """The :class:`Solution` of ``dy/dt = rhs(t, y)`` from ``y0``, with this layer's options under ``options``."""
        t_span = {**self.options, **options}.get("t_span", self.t_span)
        return self.solve_problem(self.problem(rhs, y0, t_span), **options)

    def problem(self, rhs: Callable[..., Any], y0: State, t_span: Any) -> ODEProblem | DDEProblem:
        """What is solved for a right-hand side and an initial state."""
        return ODEProblem(rhs, y0, t_span, batched=self.batched)

    def solve_problem(self, problem: ODEProblem | DDEProblem | DAEProblem, **options: Any) -> Solution:
        """The :class:`Solution` of ``problem``, with this layer's options under ``options``."""
        kept = {name: getattr(self, name) for name in ("saveat", "rtol", "atol", "sensealg", "backend")}
        together = {**kept, **self.options, **options}
        together.pop("t_span", None)
        return solve(problem, self.method, **together)

    def states(self, rhs: Callable[[Any, Any], Any], y0: State, **options: Any) -> State:
        """What a layer's ``forward`` returns: the final state, or the states at ``saveat``, time first."""
        return self.returned(self.solve_rhs(rhs, y0, **{**LEAN, **self.options, **options}))

    def returned(self, sol: Solution) -> State:
        """Of a solution, what ``forward`` returns."""
        return sol.ys if self.saveat is not None else final_state(sol)

    def extra_repr(self) -> str:
        ends = tuple(end.value for end in span_ends(self.t_span))
        return f"t_span={ends}, method={self.method}, rtol={self.rtol}, atol={self.atol}"


def check_options(layer: str, options: dict[str, Any], own: Sequence[str] = ()) -> None:
    """Whether ``solve`` takes all of these.

    Raises:
        UnknownOptionError: it does not; the message lists ``own`` too.
    """
    for name in options:
        if name not in OPTIONS:
            raise UnknownOptionError(layer, name, [*OPTIONS, *own])


def check_callable(model: Any, forms: str, name: str = "model") -> None:
    """Whether ``model`` can be called at all.

    Raises:
        InvalidArgumentError: it cannot; the message says in which ``forms`` it would be.
    """
    if not callable(model):
        raise InvalidArgumentError(f"{name}={model!r} is not callable; give an nn.Module, {forms}.")


def final_state(sol: Solution) -> State:
    """The last state of a solution."""
    return map_state(lambda y: y[-1], sol.ys)
