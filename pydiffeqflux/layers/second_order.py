"""Second-order neural ODEs: a model of the acceleration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..dynamical import SeparableField
from ..errors import ShapeError, SignatureError, UnknownNameError
from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from .solver_layer import SolverLayer, check_callable

#: What a model of the acceleration may take.
FORMS = ("u", "tu", "uv", "tuv")


@dataclass(frozen=True)
class _Accelerated:
    """``(u', v') = (v, model(...))``."""

    model: Callable[..., Any]
    takes: str

    def __call__(self, t: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        u, v = state
        return v, self.acceleration(t, u, v)

    def acceleration(self, t: Any, u: Any, v: Any = None) -> Any:
        values = {"t": t, "u": u, "v": v}
        return self.model(*(values[name] for name in self.takes))

    @property
    def separable(self) -> SeparableField | None:
        """Where the velocity does not matter, symplectic methods step position and velocity in turns."""
        return None if "v" in self.takes else SeparableField(None, self.acceleration)


class SecondOrderNeuralODE(SolverLayer):
    """``u'' = model(u, u')``: a model of the acceleration, solved for position and velocity.

    Args:
        model: ``model(u)``, ``model(u, v)`` or ``model(t, u, v)``, told by its signature; symplectic methods
            (``"velocity_verlet"``, say) need one that does not take the velocity.
        t_span, method, **options: as for :class:`NeuralODE`.
        takes: ``"u"``, ``"tu"``, ``"uv"`` or ``"tuv"``: state it where the signature does not.

    Raises:
        InvalidArgumentError: ``model`` is not callable.
        SignatureError: the signature does not tell, and ``takes`` was not stated.
        UnknownNameError: ``takes`` is something else.
        ShapeError: positions and velocities of two shapes.

    Shapes:
        ``layer(u0, v0)``, of one shape, gives the final ``(u, v)``; each with time first with ``saveat``.

    Source: Norcliffe et al., "On second order behaviour in augmented neural ODEs" (2020), arXiv:2006.07220; SciML's
    ``SecondOrderODEProblem``.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> spring = pdf.SecondOrderNeuralODE(lambda u: -u, (0.0, torch.pi), rtol=1e-6, atol=1e-6)
        >>> u, v = spring(torch.tensor([1.0]), torch.tensor([0.0]))
        >>> round(u.item(), 3)
        -1.0
    """

    own_options = ("batched", "takes")

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str = "tsit5",
        *,
        takes: str | None = None,
        **options: Any,
    ):
        super().__init__(t_span, method, **options)
        check_callable(model, "model(u), model(u, v) or model(t, u, v)")
        if takes is not None and takes not in FORMS:
            raise UnknownNameError("takes", takes, FORMS)
        self.takes = _form(model) if takes is None else takes
        self.model = model

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """``func(t, (u, v))``."""
        return _Accelerated(self.model, self.takes)

    def solve(self, u0: Tensor, v0: Tensor) -> Solution:
        """The whole :class:`Solution`; its states are pairs ``(u, v)``."""
        _check(u0, v0)
        return self.solve_rhs(self.rhs, (u0, v0))

    def forward(self, u0: Tensor, v0: Tensor) -> tuple[Tensor, Tensor]:
        _check(u0, v0)
        u, v = self.states(self.rhs, (u0, v0))
        return u, v


def _check(u0: Any, v0: Any) -> None:
    if not (isinstance(u0, Tensor) and isinstance(v0, Tensor)) or u0.shape != v0.shape:
        got = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (u0, v0)]
        raise ShapeError(f"u0 is {got[0]} and v0 {got[1]}; position and velocity are tensors of one shape.")


def _form(model: Callable[..., Any]) -> str:
    target = model.forward if isinstance(model, nn.Module) else model
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    count = sum(p.default is p.empty for p in positional)
    if count not in (1, 2, 3):
        raise SignatureError(
            f"model={model!r} has {count} required positional arguments, so it cannot be told what it wants; say"
            f" takes='u', 'tu', 'uv' or 'tuv'."
        )
    return {1: "u", 2: "uv", 3: "tuv"}[count]
