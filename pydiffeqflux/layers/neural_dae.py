"""``NeuralDAE``: a model as part of a fully implicit equation, as a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..dae_problem import DAEProblem
from ..errors import InvalidArgumentError, ShapeError, UnknownOptionError
from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from ..solve import OPTIONS
from .calling import as_rhs, takes_time
from .solver_layer import LEAN, SolverLayer, check_callable


@dataclass(frozen=True)
class Interleaved:
    """``residual(t, y, dy)``: the model's residuals in the places of differential variables, the constraint's in the
    others'."""

    model: Callable[[Any, Any], Any]
    constraint: Callable[[Any, Any], Any]
    differential: tuple[bool, ...]

    def __call__(self, t: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        rows, rest = self.model(t, torch.cat([y, dy], -1)), self.constraint(t, y)
        count = sum(self.differential)
        for name, part, n in (("model", rows, count), ("constraint", rest, len(self.differential) - count)):
            shape = (*y.shape[:-1], n)
            if not isinstance(part, Tensor) or part.shape != shape:
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ShapeError(f"{name} returned {got}; with these differential_vars it must return {shape}.")
        columns = [iter(rest.unbind(-1)), iter(rows.unbind(-1))]
        return torch.stack([next(columns[is_differential]) for is_differential in self.differential], -1)


class NeuralDAE(SolverLayer):
    """``0 = [model(y, dy); constraint(y)]`` as a layer: a fully implicit differential-algebraic equation of index 1.

    Args:
        model: a module or any callable of ``torch.cat([y, dy], -1)``, shape ``(*, 2 n)``, or of ``(t, that)``; returns
            the residuals of the differential variables' equations, ``(*, d)``.
        constraint: ``constraint(y)`` or ``constraint(t, y)``, returns those of the algebraic variables, ``(*, n - d)``.
        t_span: ``(t0, t1)``.
        differential_vars: n booleans, d of them True: the variables whose derivatives appear.
        method: ``"qndf"``.
        time_dependent: state it where the signatures do not: True for ``(t, ...)``.
        **options: as for :class:`NeuralODE`; ``initialise`` is ``"solve"`` unless it is given.

    Raises:
        InvalidArgumentError, SignatureError: for the model, the constraint and ``differential_vars``.
        ShapeError: they return other shapes.
        UnknownOptionError: an option that ``solve`` does not take.

    Shapes:
        ``layer(y0)`` or ``layer(y0, dy0)`` has the shape of ``y0``, ``(n,)`` or ``(batch, n)``, or ``(T, *y0.shape)``
        with ``saveat``. Without ``dy0`` the derivative's first guess is zero. The rows of a batch are independent.

    Source: DiffEqFlux.jl's layer of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> class Relaxing(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.rate = torch.nn.Parameter(torch.tensor(0.5))
        ...     def forward(self, both):  # y1, y2, y1', y2'
        ...         return both[..., 2:3] + self.rate * both[..., 1:2]
        >>> layer = pdf.NeuralDAE(Relaxing(), lambda y: y[..., 1:] - y[..., :1], (0.0, 1.0), [True, False], rtol=1e-5)
        >>> [round(x, 3) for x in layer(torch.ones(2)).tolist()]
        [0.607, 0.607]
    """

    own_options: ClassVar[tuple[str, ...]] = ("time_dependent",)

    def __init__(
        self,
        model: Callable[..., Any],
        constraint: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        differential_vars: Sequence[bool],
        method: Method | str = "qndf",
        *,
        time_dependent: bool | None = None,
        **options: Any,
    ):
        if "batched" in options:  # the state's dimensions say it
            raise UnknownOptionError(type(self).__name__, "batched", [*OPTIONS, *self.own_options])
        super().__init__(t_span, method, **{"initialise": "solve", **options})
        for name, part, form in (("model", model, "torch.cat([y, dy], -1)"), ("constraint", constraint, "y")):
            check_callable(part, f"{name}({form}) or {name}(t, {form})", name)
        flags = differential_vars.tolist() if isinstance(differential_vars, Tensor) else list(differential_vars)
        if not flags or not all(isinstance(flag, bool) for flag in flags) or not any(flags):
            raise InvalidArgumentError(
                f"differential_vars={differential_vars!r} must be n booleans for n states, one of them True at least."
            )
        self.model, self.constraint, self.differential_vars = model, constraint, tuple(flags)
        self.timed = tuple(takes_time(f) if time_dependent is None else time_dependent for f in (model, constraint))

    @property
    def residual(self) -> Callable[[Any, Any, Any], Any]:
        """Both parts as one ``residual(t, y, dy)``."""
        model, constraint = as_rhs(self.model, self.timed[0]), as_rhs(self.constraint, self.timed[1])
        return Interleaved(model, constraint, self.differential_vars)

    def dae_problem(self, y0: Tensor, dy0: Tensor | None = None) -> DAEProblem:
        """What this layer solves from ``y0``."""
        slope = torch.zeros_like(y0) if dy0 is None else dy0
        flags = torch.tensor(self.differential_vars, device=y0.device)
        return DAEProblem(self.residual, y0, slope, self.t_span, flags, y0.dim() > 1)

    def solve(self, y0: Tensor, dy0: Tensor | None = None) -> Solution:
        """The whole :class:`Solution` from ``y0``."""
        return self.solve_problem(self.dae_problem(y0, dy0))

    def forward(self, y0: Tensor, dy0: Tensor | None = None) -> Tensor:
        return self.returned(self.solve_problem(self.dae_problem(y0, dy0), **{**LEAN, **self.options}))
