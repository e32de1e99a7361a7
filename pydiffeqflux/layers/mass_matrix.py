"""``NeuralMassMatrixODE``: a model and constraints behind a mass matrix, as a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import MassMatrixError, ShapeError, UnknownOptionError
from ..methods import Method
from ..problem import ODEProblem, TimeLike
from ..solution import Solution
from ..solve import OPTIONS
from .calling import as_rhs, takes_time
from .solver_layer import SolverLayer, check_callable


@dataclass(frozen=True)
class Joined:
    """``func(t, y)``: what the model returns, and below it what the constraint does."""

    model: Callable[[Any, Any], Any]
    constraint: Callable[[Any, Any], Any]

    def __call__(self, t: Any, y: Any) -> Any:
        rows, rest = self.model(t, y), self.constraint(t, y)
        for name, part in (("model", rows), ("constraint", rest)):
            if not isinstance(part, Tensor) or part.dim() != y.dim() or part.shape[:-1] != y.shape[:-1]:
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ShapeError(
                    f"{name} returned {got} for a state of shape {tuple(y.shape)}; it must return a tensor that differs"
                    f" from it in its last dimension only (one equation is [..., None])."
                )
        if rows.shape[-1] + rest.shape[-1] != y.shape[-1]:
            raise ShapeError(
                f"model returned {rows.shape[-1]} equations and constraint {rest.shape[-1]} for {y.shape[-1]} states;"
                f" together there must be as many as states."
            )
        return torch.cat([rows, rest], dim=-1)


class NeuralMassMatrixODE(SolverLayer):
    """``M dy/dt = [model(y); constraint(y)]`` as a layer, with a matrix M that is usually singular.

    The rows of M that belong to the constraint are zero: it holds at all times, and the algebraic variables adjust
    to it. The problem must have index 1: the constraints determine the algebraic variables.

    Args:
        model: a module or any callable, ``model(y)`` or ``model(t, y)``, of the differential equations only:
            ``(*, n - m)`` for a state ``(*, n)``.
        constraint: likewise, ``(*, m)``; what it returns is kept at zero.
        t_span: ``(t0, t1)``.
        mass_matrix: ``(n, n)``, for each row of the state. A buffer of the layer, or (an ``nn.Parameter``) trained.
        method: one that takes a mass matrix: Rodas5P, Rosenbrock23, KenCarp4, Kvaerno5, QNDF.
        time_dependent: state it where the signatures do not: True for ``(t, y)``.
        **options: as for :class:`NeuralODE`; with ``initialise="solve"`` the algebraic part of ``y0`` is a first
            guess (see :func:`pydiffeqflux.solve`).

    Raises:
        InvalidArgumentError, SignatureError: for ``model`` and ``constraint``.
        MassMatrixError: ``mass_matrix`` is not a square matrix, or does not fit the state.
        MassMatrixMethodError: a method that cannot take it.
        ShapeError: the equations are not as many as the states.
        UnknownOptionError: an option that ``solve`` does not take.

    Shapes:
        ``layer(y0)`` has the shape of ``y0``, ``(n,)`` or ``(batch, n)``, or ``(T, *y0.shape)`` with ``saveat``. The
        rows of a batch are independent systems.

    Source: DiffEqFlux.jl's ``NeuralODEMM``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> net = torch.nn.Linear(3, 2)
        >>> layer = pdf.NeuralMassMatrixODE(
        ...     net, lambda y: y.sum(-1, keepdim=True) - 1, (0.0, 1.0), torch.diag(torch.tensor([1.0, 1.0, 0.0]))
        ... )
        >>> end = layer(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]))
        >>> bool((end.sum(-1) - 1).abs().max() < 1e-5)
        True
    """

    own_options: ClassVar[tuple[str, ...]] = ("time_dependent",)
    mass_matrix: Tensor

    def __init__(
        self,
        model: Callable[..., Any],
        constraint: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        mass_matrix: Tensor,
        method: Method | str = "rodas5p",
        *,
        time_dependent: bool | None = None,
        **options: Any,
    ):
        if "batched" in options:  # the state's dimensions say it
            raise UnknownOptionError(type(self).__name__, "batched", [*OPTIONS, *self.own_options])
        super().__init__(t_span, method, **options)
        for name, part in (("model", model), ("constraint", constraint)):
            check_callable(part, f"{name}(y) or {name}(t, y)", name)
        if not isinstance(mass_matrix, Tensor) or mass_matrix.dim() != 2 or len(set(mass_matrix.shape)) != 1:
            got = tuple(mass_matrix.shape) if isinstance(mass_matrix, Tensor) else type(mass_matrix).__name__
            raise MassMatrixError(f"mass_matrix is {got}; give a square matrix (n, n), n being the number of states.")
        self.model, self.constraint = model, constraint
        self.timed = tuple(takes_time(f) if time_dependent is None else time_dependent for f in (model, constraint))
        if isinstance(mass_matrix, torch.nn.Parameter):
            self.mass_matrix = mass_matrix
        else:
            self.register_buffer("mass_matrix", mass_matrix)

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """Both parts as one ``func(t, y)``."""
        return Joined(as_rhs(self.model, self.timed[0]), as_rhs(self.constraint, self.timed[1]))

    def problem(self, rhs: Callable[..., Any], y0: Tensor, t_span: Any) -> ODEProblem:
        """What is solved for a right-hand side and an initial state."""
        return ODEProblem(rhs, y0, t_span, y0.dim() > 1, self.mass_matrix)

    def solve(self, y0: Tensor) -> Solution:
        """The whole :class:`Solution` from ``y0``."""
        return self.solve_rhs(self.rhs, y0)

    def forward(self, y0: Tensor) -> Tensor:
        return self.states(self.rhs, y0)
