"""``NeuralDSDE`` and ``NeuralSDE``: models as the drift and the diffusion of a stochastic equation, as layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .. import sde_methods
from .. import sensealg as sensealgs
from ..errors import InvalidArgumentError, UnknownOptionError
from ..methods import Method
from ..problem import TimeLike
from ..sde_problem import SDEProblem, check_noise_dim, span_of
from ..sensealg import SenseAlg
from ..solution import Solution
from ..solve import OPTIONS, solve
from .calling import as_rhs, takes_time


class _SDELayer(nn.Module):
    """What both layers do; they differ in the noise."""

    noise = ""
    noise_dim: int | None = None

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        method: Method | str | None = None,
        *,
        saveat: Tensor | Sequence[TimeLike] | float | None = None,
        rtol: float | Tensor = 1e-2,
        atol: float | Tensor = 1e-2,
        sensealg: SenseAlg | str | None = None,
        backend: str = "auto",
        interpretation: str = "ito",
        seed: int | None = None,
        brownian: Any = None,
        time_dependent: bool | None = None,
        **options: Any,
    ):
        super().__init__()
        for name in options:
            if name not in OPTIONS:
                own = ("interpretation", "seed", "brownian", "time_dependent")
                raise UnknownOptionError(type(self).__name__, name, [*OPTIONS, *own])
        for name, model in (("drift", drift), ("diffusion", diffusion)):
            if not callable(model):
                raise InvalidArgumentError(
                    f"{name}={model!r} is not callable; give an nn.Module, {name}(y) or {name}(t, y)."
                )
        span_of(t_span)
        self.drift, self.diffusion = drift, diffusion
        self.timed = tuple(takes_time(m) if time_dependent is None else time_dependent for m in (drift, diffusion))
        self.t_span, self.saveat, self.interpretation = t_span, saveat, interpretation
        self.method = (
            sde_methods.default(self.noise, interpretation) if method is None else sde_methods.resolve(method, backend)
        )
        sde_methods.check(self.method, self.noise, interpretation)
        self.rtol, self.atol = rtol, atol
        self.sensealg, self.backend = sensealgs.resolve(sensealg), backend
        self.seed, self.brownian, self.options = seed, brownian, options

    def problem(self, y0: Tensor) -> SDEProblem:
        """What this layer solves from ``y0``."""
        return SDEProblem(
            as_rhs(self.drift, self.timed[0]),
            as_rhs(self.diffusion, self.timed[1]),
            y0,
            self.t_span,
            noise=self.noise,
            interpretation=self.interpretation,
            noise_dim=self.noise_dim,
            seed=self.seed,
            brownian=self.brownian,
        )

    def _solve(self, y0: Tensor, **options: Any) -> Solution:
        kept = {name: getattr(self, name) for name in ("saveat", "rtol", "atol", "sensealg", "backend")}
        return solve(self.problem(y0), self.method, **{**kept, **self.options, **options})

    def solve(self, y0: Tensor) -> Solution:
        """The whole :class:`Solution` from ``y0``: times, states, statistics, the Brownian path."""
        return self._solve(y0)

    def forward(self, y0: Tensor) -> Tensor:
        sol = self._solve(y0, **{"dense": False, "save_everystep": False, **self.options})
        return sol.ys if self.saveat is not None else sol.ys[-1]

    def extra_repr(self) -> str:
        ends = tuple(end.value for end in span_of(self.t_span))
        return f"t_span={ends}, method={self.method}, noise={self.noise}, interpretation={self.interpretation}"


class NeuralDSDE(_SDELayer):
    """The stochastic flow of ``dy = drift dt + diffusion dW`` with diagonal noise, as a layer.

    Args:
        drift, diffusion: modules or any callables of ``(y)`` or ``(t, y)``; which of the two is told by the
            signature. Both return the shape ``(*, d)`` of the state.
        t_span: ``(t0, t1)``.
        method: as for :func:`pydiffeqflux.solve` of an :class:`SDEProblem`; SOSRI where None (Heun's method for
            Stratonovich equations).
        saveat: times to return; None returns the final state only.
        rtol, atol: the tolerances of adaptive methods; looser than ``solve``'s, as in SciML.
        sensealg, backend: as for :func:`pydiffeqflux.solve`.
        interpretation: ``"ito"`` or ``"stratonovich"``.
        seed, brownian: fix the path; without them every call draws a new one (see :class:`SDEProblem`).
        time_dependent: state it where the signatures do not: True for ``drift(t, y)`` and ``diffusion(t, y)``.
        **options: further keyword arguments of :func:`pydiffeqflux.solve`, such as ``dt``.

    Raises:
        InvalidArgumentError, InvalidTimesError, UnknownNameError, UnsupportedError: for the arguments.
        SignatureError: a signature does not tell, and ``time_dependent`` was not stated.
        UnknownOptionError: an option that ``solve`` does not take.

    Shapes:
        ``layer(y0)`` has the shape of ``y0`` (the final state), or ``(T, *y0.shape)`` with ``saveat``.

    Source: DiffEqFlux.jl's layer of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> drift = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> diffusion = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sigmoid())
        >>> layer = pdf.NeuralDSDE(drift, diffusion, (0.0, 1.0), "sosri", saveat=[0.5, 1.0], rtol=0.1, atol=0.1)
        >>> layer(torch.ones(16, 2)).shape
        torch.Size([2, 16, 2])
    """

    noise = "diagonal"


class NeuralSDE(_SDELayer):
    """The stochastic flow of ``dy = drift dt + diffusion dW`` with general noise, as a layer.

    Args:
        drift: as for :class:`NeuralDSDE`.
        diffusion: as for :class:`NeuralDSDE`, but returns matrices ``(*, d, nbrown)``:
            ``torch.nn.Unflatten(-1, (d, nbrown))`` makes them of a vector.
        t_span: ``(t0, t1)``.
        nbrown: how many Brownian motions there are.
        method: where None, EM, which needs ``dt``, or (``interpretation="stratonovich"``) Heun's method.
        **options: as for :class:`NeuralDSDE`.

    Raises, Shapes, Source:
        as for :class:`NeuralDSDE`.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> drift = torch.nn.Linear(2, 2)
        >>> diffusion = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Unflatten(-1, (2, 3)))
        >>> layer = pdf.NeuralSDE(drift, diffusion, (0.0, 1.0), 3, "em", dt=0.1)
        >>> layer(torch.ones(16, 2)).shape
        torch.Size([16, 2])
    """

    noise = "general"

    def __init__(
        self,
        drift: Callable[..., Any],
        diffusion: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        nbrown: int,
        method: Method | str | None = None,
        **options: Any,
    ):
        check_noise_dim(nbrown, "nbrown")
        super().__init__(drift, diffusion, t_span, method, **options)
        self.noise_dim = nbrown

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, nbrown={self.noise_dim}"
