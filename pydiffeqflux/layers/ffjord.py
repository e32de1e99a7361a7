"""Continuous normalising flows: densities carried along by a differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from ..errors import InvalidArgumentError, ShapeError, UnknownNameError, UnsupportedError
from ..methods import Method
from ..problem import TimeLike
from ..solution import Solution
from .calling import as_rhs, takes_time
from .derivatives import jacobian_rows, pullback
from .solver_layer import LEAN, SolverLayer, check_callable, final_state

TRACES = ("exact", "hutchinson")
NOISES = ("rademacher", "gaussian")


class FlowOutput(NamedTuple):
    """What :class:`FFJORD` returns, each shaped like the batch."""

    log_prob: Tensor  #: log-density of each sample
    kinetic: Tensor  #: the integral of |f|^2 along its path (0 without ``regularize``)
    jacobian: Tensor  #: the integral of the squared Frobenius norm of df/dz (likewise)


@dataclass(frozen=True)
class _Augmented:
    """The field together with what is integrated along it: -tr(df/dz) and the two regularisers."""

    func: Callable[[Any, Tensor], Tensor]
    noise: Tensor | None
    event_dims: int
    regularize: bool

    def __call__(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = state[0]
        event = tuple(range(-self.event_dims, 0))
        if self.noise is None:
            f, rows = jacobian_rows(self.func, self.event_dims, t, z)
            self._check(f, z)
            square = rows.flatten(-self.event_dims)  # (n, *batch, n)
            trace = torch.diagonal(square, dim1=0, dim2=-1).sum(-1)
            size = square.square().sum((0, -1))
        else:
            f, back = pullback(self.func, t, z)
            self._check(f, z)
            product = back(self.noise)
            trace = (product * self.noise).sum(event)
            size = product.square().sum(event)
        if not self.regularize:
            return f, -trace
        return f, -trace, f.square().sum(event), size

    @staticmethod
    def _check(f: Any, z: Tensor) -> None:
        if not isinstance(f, Tensor) or f.shape != z.shape:
            got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
            raise ShapeError(f"model returned {got} for samples of shape {tuple(z.shape)}; a flow needs that shape.")


@dataclass(frozen=True)
class _Density:
    """The field of a flow, by which DiffEqFlux's FFJORD is told; what that returns are log-densities, or samples."""

    model: FFJORD
    inverse: bool
    theirs: ClassVar[str] = "FFJORD"

    def __call__(self, t: Any, z: Tensor) -> Tensor:
        out: Tensor = self.model.rhs(t, z)
        return out


class FFJORD(SolverLayer):
    """A continuous normalising flow: ``dz/dt = model(z)`` or ``model(t, z)`` carries data to a simple distribution.

    Along the flow ``d log p / dt = -tr(dmodel/dz)``, so the density of a sample is that of the point where it
    ends, times the factor by which the flow has changed volumes on the way.

    Args:
        model: returns the shape that it is given; the samples of a batch must not interact.
        t_span, method: as for :class:`NeuralODE`; data are at its first time, the base distribution at its second.
        input_dims: the shape of a sample, or its length.
        basedist: a ``torch.distributions.Distribution`` over ``input_dims``; the standard normal one where None.
        trace: ``"exact"``, at the cost of one vector-Jacobian product a dimension, or ``"hutchinson"``, an unbiased
            estimate at the cost of one: ``e' (df/dz) e``, its noise drawn once for each solve and sample.
        noise: of that estimate: ``"rademacher"`` (the least variance) or ``"gaussian"``.
        seed: draw the same noise in every call; from torch's global generator where None.
        regularize: integrate ``|f|^2`` and ``|df/dz|^2`` along the paths too: added to the loss, they make the flow
            straight and cheap to solve. With the estimate the second is estimated as well (``|e' df/dz|^2``).
        **options: as for :class:`NeuralODE`, but for ``saveat``.

    Raises:
        InvalidArgumentError, UnknownNameError: for ``input_dims``, ``basedist``, ``trace`` and ``noise``.
        UnsupportedError: ``saveat``: a flow goes from one end of its span to the other (:meth:`solve` takes it).
        ShapeError: samples that are not of ``input_dims``.

    Shapes:
        ``(*batch, *input_dims)`` to three times ``(*batch,)``: log-density, and the two regularisers.

    Sources: Grathwohl et al., "FFJORD" (2019), arXiv:1810.01367; Hutchinson, Commun. Stat. Simul. Comput. 18 (1989)
    1059-1076; Finlay et al., "How to train your neural ODE" (2020), arXiv:2002.02798.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> halve = lambda z: -z  # by t = log 2
        >>> flow = pdf.FFJORD(halve, (0.0, 0.6931472), 1, rtol=1e-8, atol=1e-8)
        >>> x = torch.linspace(-3, 3, 5)[:, None]
        >>> exact = torch.distributions.Normal(0.0, 2.0).log_prob(x)[:, 0]
        >>> torch.allclose(flow(x).log_prob, exact, atol=1e-5)
        True
    """

    own_options = ("batched", "basedist", "trace", "noise", "seed", "regularize", "time_dependent")

    def __init__(
        self,
        model: Callable[..., Any],
        t_span: Sequence[TimeLike] | Tensor,
        input_dims: int | Sequence[int],
        method: Method | str = "tsit5",
        *,
        basedist: Distribution | None = None,
        trace: str = "exact",
        noise: str = "rademacher",
        seed: int | None = None,
        regularize: bool = False,
        time_dependent: bool | None = None,
        **options: Any,
    ):
        super().__init__(t_span, method, **options)
        check_callable(model, "model(z) or model(t, z)")
        if self.saveat is not None:
            raise UnsupportedError(
                "FFJORD maps from one end of t_span to the other and saves nothing between: leave saveat out, and ask"
                " flow.solve(x, saveat=...) for the path."
            )
        for name, value, known in (("trace", trace, TRACES), ("noise", noise, NOISES)):
            if value not in known:
                raise UnknownNameError(name, value, known)
        self.input_dims = _dims(input_dims)
        self.basedist = _base(basedist, self.input_dims)
        self.time_dependent = takes_time(model) if time_dependent is None else time_dependent
        self.model = model
        self.trace, self.noise, self.seed, self.regularize = trace, noise, seed, regularize

    def forward(self, x: Tensor, noise: Tensor | None = None) -> FlowOutput:
        """Log-density and regularisers of each sample.

        Args:
            x: ``(*batch, *input_dims)``.
            noise: what the trace is estimated with, shaped like ``x``; drawn where None.
        """
        if self.backend == "diffeqflux":
            return self._theirs(x, noise)
        z, change, *more = final_state(self._run(x, noise, LEAN))
        kinetic, jacobian = more or (torch.zeros_like(change), torch.zeros_like(change))
        return FlowOutput(self.base_log_prob(z) - change, kinetic, jacobian)

    def _theirs(self, x: Tensor, noise: Tensor | None) -> FlowOutput:
        """The same by DiffEqFlux's layer of this name."""
        self._check_samples(x, "x")
        self._check_noise(x, noise)
        found: Tensor = final_state(self.solve_rhs(_Density(self, False), x, **LEAN))
        return FlowOutput(found, torch.zeros_like(found), torch.zeros_like(found))

    @property
    def rhs(self) -> Callable[[Any, Any], Any]:
        """The model as ``func(t, z)``."""
        return as_rhs(self.model, self.time_dependent)

    def flow(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Where each sample ends, ``(*batch, *input_dims)``, and the log of the flow's volume factor, ``(*batch,)``."""
        z, change, *_ = final_state(self._run(x, noise, LEAN))
        return z, -change

    def inverse(self, z: Tensor) -> Tensor:
        """The samples that the flow carries to ``z``: the same equation, backwards."""
        self._check_samples(z, "z")
        if self.backend == "diffeqflux":
            sampled: Tensor = final_state(self.solve_rhs(_Density(self, True), z, **LEAN))
            return sampled
        t0, t1 = self.t_span
        found: Tensor = final_state(self.solve_rhs(self.rhs, z, t_span=(t1, t0), saveat=None, **LEAN))
        return found

    def solve(self, x: Tensor, noise: Tensor | None = None, **options: Any) -> Solution:
        """The :class:`Solution` of the whole augmented state ``(z, change of log p, ...)``."""
        return self._run(x, noise, options)

    def draw(self, x: Tensor) -> Tensor:
        """Noise for Hutchinson's estimate, shaped like ``x``."""
        generator = None
        if self.seed is not None:
            generator = torch.Generator(x.device).manual_seed(self.seed)
        if self.noise == "gaussian":
            return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
        signs = torch.randint(0, 2, x.shape, device=x.device, generator=generator)
        return (2 * signs - 1).to(x.dtype)

    def base(self, like: Tensor) -> Distribution:
        """The base distribution, with the dtype and device of ``like`` where it is the standard normal one."""
        if self.basedist is not None:
            return self.basedist
        zeros = torch.zeros(self.input_dims, dtype=like.dtype, device=like.device)
        return Independent(torch.distributions.Normal(zeros, torch.ones_like(zeros)), len(self.input_dims))

    def base_log_prob(self, z: Tensor) -> Tensor:
        """The base distribution's log-density."""
        if self.basedist is not None:
            return self.basedist.log_prob(z)
        squares = z.square().flatten(z.dim() - len(self.input_dims)).sum(-1)
        return -0.5 * squares - 0.5 * math.prod(self.input_dims) * math.log(2 * math.pi)

    def _run(self, x: Tensor, noise: Tensor | None, options: dict[str, Any]) -> Solution:
        self._check_samples(x, "x")
        self._check_noise(x, noise)
        if self.trace == "hutchinson" and noise is None:
            noise = self.draw(x)
        zeros = x.new_zeros(x.shape[: x.dim() - len(self.input_dims)])
        parts = 4 if self.regularize else 2
        rhs = _Augmented(self.rhs, noise, len(self.input_dims), self.regularize)
        return self.solve_rhs(rhs, (x, *[zeros] * (parts - 1)), **options)

    def _check_noise(self, x: Tensor, noise: Tensor | None) -> None:
        if noise is not None and self.trace == "exact":
            raise InvalidArgumentError("noise was given, but trace='exact' uses none; use trace='hutchinson'.")
        if noise is not None and noise.shape != x.shape:
            raise ShapeError(f"noise has shape {tuple(noise.shape)} where x has {tuple(x.shape)}; they must agree.")

    def _check_samples(self, x: Any, name: str) -> None:
        count = len(self.input_dims)
        if not isinstance(x, Tensor) or x.dim() < count or x.shape[x.dim() - count :] != self.input_dims:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
            raise ShapeError(
                f"{name} has {got}; samples of this flow end in input_dims={tuple(self.input_dims)}: give"
                f" (*batch, *input_dims)."
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, input_dims={tuple(self.input_dims)}, trace={self.trace}"


def _dims(input_dims: Any) -> torch.Size:
    dims = (input_dims,) if isinstance(input_dims, int) else input_dims
    ok = isinstance(dims, tuple | list) and len(dims) > 0
    if not ok or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in dims):
        raise InvalidArgumentError(f"input_dims={input_dims!r} must be a positive integer, or several of them.")
    return torch.Size(dims)


def _base(basedist: Any, dims: torch.Size) -> Distribution | None:
    if basedist is None:
        return None
    if not isinstance(basedist, Distribution):
        raise InvalidArgumentError(f"basedist={basedist!r} is not a torch.distributions.Distribution.")
    shape = basedist.batch_shape + basedist.event_shape
    if shape != dims:
        raise InvalidArgumentError(
            f"basedist is over shape {tuple(shape)} where input_dims={tuple(dims)}; expand it, or change input_dims."
        )
    missing = len(basedist.batch_shape)
    return Independent(basedist, missing) if missing else basedist


class FFJORDDistribution(Distribution):
    """The distribution that a flow has learnt, with torch's interface.

    Args:
        model: the flow.

    ``log_prob`` solves forwards in time, ``rsample`` backwards; both are differentiable, ``sample`` is not.
    Samples have the dtype and device of the model's parameters.

    Raises:
        InvalidArgumentError: ``model`` is not an :class:`FFJORD`.
        ShapeError: ``log_prob`` of values that are not of ``input_dims``.

    Source: as for :class:`FFJORD`; DiffEqFlux.jl's type of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> learnt = pdf.FFJORDDistribution(pdf.FFJORD(net, (0.0, 1.0), 2))
        >>> learnt.log_prob(learnt.sample((5,))).shape
        torch.Size([5])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (torch's own interface)
    has_rsample = True

    def __init__(self, model: FFJORD):
        if not isinstance(model, FFJORD):
            raise InvalidArgumentError(f"model={model!r} is not an FFJORD; give one.")
        self.model = model
        super().__init__(torch.Size(), model.input_dims, validate_args=False)

    @property
    def support(self) -> Any:
        real = torch.distributions.constraints.real
        return torch.distributions.constraints.independent(real, len(self.model.input_dims))

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*batch, *input_dims)`` to ``(*batch,)``."""
        return self.model(value).log_prob

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """``(*sample_shape, *input_dims)``, differentiable in the model's parameters."""
        like = next(self.model.parameters(), torch.empty(0))
        base = self.model.base(like)
        draw = base.rsample if base.has_rsample else base.sample
        return self.model.inverse(draw(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """As :meth:`rsample`, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)
