"""What is to be solved: ``dy = drift(t, y) dt + diffusion(t, y) dW``, ``y(t0) = y0`` on a time span."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .errors import InvalidArgumentError, InvalidStateError, InvalidTimesError, UnknownNameError, UnsupportedError
from .problem import TimeLike, TimePoint, span_ends
from .sde_methods import INTERPRETATIONS, NOISES
from .state import StateSpec, pack


@dataclass(frozen=True)
class SDEProblem:
    """A stochastic initial value problem ``dy = drift(t, y) dt + diffusion(t, y) dW`` on a time span.

    Args:
        drift: ``drift(t, y)``, any callable or ``nn.Module``; ``t`` is a scalar tensor, ``y`` and the result have
            the shape ``(*, d)`` of ``y0``: a batch first, as in torchsde.
        diffusion: ``diffusion(t, y)``, of the shape ``(*, d)`` for ``noise="diagonal"`` and ``(*, d, m)`` for
            ``"general"``, ``"scalar"`` (then m is 1) and ``"additive"`` (which may be ``(*, d)`` too).
        y0: a real tensor of shape ``(*, d)``.
        t_span: ``(t0, t1)`` with ``t0 < t1``.
        noise: how the Brownian motion enters. ``"diagonal"``: entry i of the diffusion multiplies a Brownian motion
            of its own (and, for the orders that methods promise, depends on entry i of the state only);
            ``"scalar"``: one Brownian motion a row; ``"additive"``: the diffusion does not depend on ``y``;
            ``"general"``: any matrix.
        interpretation: ``"ito"`` or ``"stratonovich"``.
        noise_dim: the number m of Brownian motions, to be checked against what the diffusion returns.
        seed: the Brownian path is a function of this number, of the time span and of time alone, whatever the steps
            and the method. None draws a seed from torch's global generator in every solve; ``stats.seed`` says which.
        brownian: the path itself, instead of a seed: ``brownian(ta, tb)`` is the increment, as that of
            :class:`~pydiffeqflux.BrownianInterval`.

    Raises:
        InvalidArgumentError, InvalidStateError, InvalidTimesError, UnknownNameError, UnsupportedError

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> growth = pdf.SDEProblem(lambda t, y: 0.5 * y, lambda t, y: 0.2 * y, torch.ones(100, 1), (0.0, 1.0), seed=1)
        >>> sol = pdf.solve(growth, "sriw1", saveat=[0.0, 0.5, 1.0], rtol=1e-2, atol=1e-2)
        >>> sol.ys.shape, bool(abs(sol.ys[-1].mean() - 1.65) < 0.1)
        (torch.Size([3, 100, 1]), True)
    """

    drift: Callable[[Tensor, Tensor], Tensor]
    diffusion: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    t_span: Sequence[TimeLike] | Tensor
    noise: str = field(default="diagonal", kw_only=True)
    interpretation: str = field(default="ito", kw_only=True)
    noise_dim: int | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    brownian: Any = field(default=None, kw_only=True)
    t0: TimePoint = field(init=False, repr=False)
    t1: TimePoint = field(init=False, repr=False)
    #: The state, and (what the engine shares with problems whose state is a structure) how to unpack it: not at all.
    packed: Tensor = field(init=False, repr=False)
    spec: StateSpec | None = field(init=False, repr=False)
    #: Steps are joint: all rows of the state see the same step sizes.
    batched: bool = field(init=False, repr=False, default=False)
    direction: float = field(init=False, repr=False, default=1.0)

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            if not callable(getattr(self, name)):
                raise InvalidArgumentError(
                    f"{name}={getattr(self, name)!r} is not callable; give {name}(t, y) or an nn.Module."
                )
        for name, value, names in (
            ("noise", self.noise, NOISES),
            ("interpretation", self.interpretation, INTERPRETATIONS),
        ):
            if value not in names:
                raise UnknownNameError(name, value, names)
        if not isinstance(self.y0, Tensor) or self.y0.is_complex() or self.y0.dim() == 0:
            kind = type(self.y0).__name__ if not isinstance(self.y0, Tensor) else f"{self.y0.dtype} of no dimension"
            raise InvalidStateError(
                f"y0 is a {kind}; the state of an SDEProblem is a real tensor of shape (*, d): torch.ones(8, 2), say."
            )
        packed, spec = pack(self.y0)
        t0, t1 = span_of(self.t_span)
        if self.noise_dim is not None:
            check_noise_dim(self.noise_dim, "noise_dim")
        _check_path(self.seed, self.brownian)
        for name, given in (("packed", packed), ("spec", spec), ("t0", t0), ("t1", t1)):
            object.__setattr__(self, name, given)

    @property
    def func(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The drift, under the name that the right-hand side of an :class:`ODEProblem` has."""
        return self.drift


def check_noise_dim(m: Any, name: str) -> None:
    """A number of Brownian motions.

    Raises:
        InvalidArgumentError: it is none.
    """
    if isinstance(m, bool) or not isinstance(m, numbers.Integral) or m < 1:
        raise InvalidArgumentError(f"{name}={m!r} must be a positive integer: how many Brownian motions there are.")


def span_of(t_span: Any) -> tuple[TimePoint, TimePoint]:
    """Both ends of a time span on which noise can act.

    Raises:
        InvalidTimesError: not two finite times in increasing order.
        UnsupportedError: one of them requires a gradient.
    """
    t0, t1 = span_ends(t_span)
    if t1.value < t0.value:
        raise InvalidTimesError(
            f"t_span=({t0.value}, {t1.value}) runs backwards; the noise of an SDE is independent of the past only"
            f" forwards in time: give ({t1.value}, {t0.value})."
        )
    refuse_gradient(t0, "t_span[0]")
    refuse_gradient(t1, "t_span[1]")
    return t0, t1


def refuse_gradient(t: TimePoint, name: str) -> None:
    """Times of a stochastic equation are constants.

    Raises:
        UnsupportedError: this one requires a gradient.
    """
    if t.differentiable:
        raise UnsupportedError(
            f"{name}={t.value} requires a gradient, and the paths of an SDE have no derivative in time: detach it."
        )


def _check_path(seed: Any, brownian: Any) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0):
        raise InvalidArgumentError(f"seed={seed!r} must be an integer >= 0, or None for a new path in every solve.")
    if brownian is None:
        return
    if not callable(brownian):
        raise InvalidArgumentError(
            f"brownian={brownian!r} is not callable; give brownian(ta, tb), such as a BrownianInterval."
        )
    if seed is not None:
        raise InvalidArgumentError(f"seed={seed} and brownian exclude each other: the path is given by one of them.")
