"""How a solution is differentiated: SciMLSensitivity's names and options, as plain descriptions.

A backend decides what it does with them; nothing here computes. Every option that a description does
not mention is the forward solve's own (its method, tolerances, step limit).
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import Any, ClassVar

from . import methods, sde_methods
from .errors import InvalidArgumentError, InvalidToleranceError, UnknownNameError, UnsupportedError


@dataclass(frozen=True)
class SenseAlg:
    """Base of the sensitivity algorithms."""

    names: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class DiscreteAdjoint(SenseAlg):
    """Discretise, then optimise: the exact gradient of the computed solution.

    Args:
        checkpoints: ``None`` keeps every step in memory (fastest; differentiable any number of times).
            ``"sqrt"`` keeps about the square root of the number of steps and recomputes the rest during
            the backward pass. An integer keeps that many.
        second_order: implicit methods only: carry the second derivative through the implicit equations
            too, at about the cost of one Newton iteration with a differentiable Jacobian a stage.

    Source: Griewank & Walther, "Algorithm 799: revolve" (2000), for checkpointing in general; the
    square-root schedule is Chen et al., "Training deep nets with sublinear memory cost" (2016).

    Example:
        >>> from pydiffeqflux import DiscreteAdjoint
        >>> DiscreteAdjoint(checkpoints="sqrt").name
        'DiscreteAdjoint'
    """

    checkpoints: int | str | None = None
    second_order: bool = False
    names: ClassVar[tuple[str, ...]] = ("discrete", "autograd")

    def __post_init__(self) -> None:
        ok = self.checkpoints in (None, "sqrt") or (
            isinstance(self.checkpoints, int) and not isinstance(self.checkpoints, bool) and self.checkpoints > 0
        )
        if not ok:
            raise InvalidArgumentError(
                f"checkpoints={self.checkpoints!r}: give a positive integer, 'sqrt', or None to keep every step."
            )


@dataclass(frozen=True)
class _Continuous(SenseAlg):
    """Options shared by the algorithms that solve an adjoint differential equation backwards.

    Args:
        method: method of the backward solve; the forward method where ``None``.
        rtol, atol: tolerances of the backward solve; the forward ones where ``None``.
        autojacvec: on ``backend="julia"``, where vector-Jacobian products come from: ``"traced"`` (where ``None``,
            and the fastest: the function that torch traced), or, out of the right-hand side's emitted code,
            ``"forwarddiff"`` (or ``True``, as SciMLSensitivity has it), ``"finitediff"`` (``False``),
            ``"reversediff"``, ``"tracker"`` or ``"zygote"``. The native backends' come from autograd.

    Raises:
        UnknownNameError, InvalidToleranceError, UnsupportedError: for ``method``, the tolerances and ``autojacvec``.
    """

    method: Any = None
    rtol: float | None = None
    atol: float | None = None
    autojacvec: bool | str | None = field(default=None, kw_only=True)

    @property
    def products(self) -> str:
        """``autojacvec`` as one of :data:`PRODUCTS`."""
        return _products(self.autojacvec)

    def __post_init__(self) -> None:
        _products(self.autojacvec)
        if self.method is not None:
            _check_method(self.method)
        for name in ("rtol", "atol"):
            _check_tolerance(name, getattr(self, name))


@dataclass(frozen=True)
class BacksolveAdjoint(_Continuous):
    """Solve state, adjoint and parameter gradient backwards together: O(1) memory, unfit for stiff problems.

    Args:
        checkpointing: put the state back onto the forward solution at every saved time, as
            torchdiffeq and SciMLSensitivity do; ``False`` trusts the reverse solve throughout.
        seminorm: leave the parameter gradient out of the error norm ("Hey, that's not an ODE",
            Kidger, Chen & Lyons 2021), which saves steps.

    Source: Chen et al., "Neural ordinary differential equations" (2018).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> k = torch.tensor(0.5, requires_grad=True)
        >>> decay = pdf.ODEProblem(lambda t, y: -k * y, torch.ones(1), (0.0, 1.0))
        >>> pdf.solve(decay, sensealg=pdf.BacksolveAdjoint(seminorm=True)).ys[-1].backward()
        >>> round(k.grad.item(), 3)  # exactly -exp(-1/2)
        -0.607
    """

    checkpointing: bool = True
    seminorm: bool = False
    names: ClassVar[tuple[str, ...]] = ("backsolve",)


@dataclass(frozen=True)
class InterpolatingAdjoint(_Continuous):
    """Solve adjoint and parameter gradient backwards along the forward solution's dense output.

    Args:
        checkpointing: keep only the state at the saved times and solve again between two of them, instead
            of keeping the dense output of the whole solve.

    Source: Rackauckas et al., "A comparison of automatic differentiation and continuous sensitivity
    analysis for derivatives of differential equation solutions" (2018), arXiv:1812.01892.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> k = torch.tensor(0.5, requires_grad=True)
        >>> decay = pdf.ODEProblem(lambda t, y: -k * y, torch.ones(1), (0.0, 1.0))
        >>> pdf.solve(decay, sensealg=pdf.InterpolatingAdjoint(checkpointing=True)).ys[-1].backward()
        >>> round(k.grad.item(), 3)  # exactly -exp(-1/2)
        -0.607
    """

    checkpointing: bool = False
    names: ClassVar[tuple[str, ...]] = ("interpolating",)


@dataclass(frozen=True)
class QuadratureAdjoint(_Continuous):
    """Solve the adjoint alone, densely; then integrate the parameter gradient by adaptive Gauss-Kronrod.

    Args:
        abstol, reltol: tolerances of the quadrature.

    Source: as for :class:`InterpolatingAdjoint`.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> k = torch.tensor(0.5, requires_grad=True)
        >>> decay = pdf.ODEProblem(lambda t, y: -k * y, torch.ones(1), (0.0, 1.0))
        >>> pdf.solve(decay, sensealg=pdf.QuadratureAdjoint(reltol=1e-6)).ys[-1].backward()
        >>> round(k.grad.item(), 3)  # exactly -exp(-1/2)
        -0.607
    """

    abstol: float = 1e-6
    reltol: float = 1e-3
    names: ClassVar[tuple[str, ...]] = ("quadrature",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_tolerance("abstol", self.abstol)
        _check_tolerance("reltol", self.reltol)


@dataclass(frozen=True)
class GaussAdjoint(_Continuous):
    """Solve the adjoint alone; sum the parameter gradient by Gauss quadrature on each backward step.

    Args:
        checkpointing: as for :class:`InterpolatingAdjoint`.

    Source: Norcliffe & Deisenroth, "Faster training of neural ODEs using Gauss-Legendre quadrature" (2023).

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> k = torch.tensor(0.5, requires_grad=True)
        >>> decay = pdf.ODEProblem(lambda t, y: -k * y, torch.ones(1), (0.0, 1.0))
        >>> pdf.solve(decay, sensealg=pdf.GaussAdjoint(rtol=1e-5)).ys[-1].backward()
        >>> round(k.grad.item(), 3)  # exactly -exp(-1/2)
        -0.607
    """

    checkpointing: bool = False
    names: ClassVar[tuple[str, ...]] = ("gauss",)


@dataclass(frozen=True)
class ForwardSensitivity(SenseAlg):
    """Solve the sensitivity equations dS/dt = (df/dy) S + df/dp next to the state: for few parameters.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I", section I.14.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> k = torch.tensor(0.5, requires_grad=True)
        >>> decay = pdf.ODEProblem(lambda t, y: -k * y, torch.ones(1), (0.0, 1.0))
        >>> pdf.solve(decay, sensealg=pdf.ForwardSensitivity()).ys[-1].backward()
        >>> round(k.grad.item(), 3)  # exactly -exp(-1/2)
        -0.607
    """

    names: ClassVar[tuple[str, ...]] = ("forward",)


@dataclass(frozen=True)
class GaussKronrodAdjoint(_Continuous):
    """As :class:`GaussAdjoint`, the quadrature adaptive, by Gauss-Kronrod rules; for ``backend="julia"`` only.

    Args:
        checkpointing: as for :class:`InterpolatingAdjoint`.

    Source: SciMLSensitivity.jl, ``GaussKronrodAdjoint``.

    Example:
        >>> from pydiffeqflux import GaussKronrodAdjoint
        >>> GaussKronrodAdjoint(rtol=1e-8).name
        'GaussKronrodAdjoint'
    """

    checkpointing: bool = False
    names: ClassVar[tuple[str, ...]] = ("gausskronrod",)


@dataclass(frozen=True)
class ForwardDiffSensitivity(SenseAlg):
    """The solver run on dual numbers, once more for every few states and parameters; for ``backend="julia"`` only.

    Exact for a solve that controls the error of the derivatives, too. For few states and parameters, and solvers whose
    steps cannot be differentiated otherwise.

    Args:
        chunk_size: derivatives that one number carries; 8 where ``None``. Julia compiles the solver for each size.

    Raises:
        InvalidArgumentError: for ``chunk_size``.

    Source: SciMLSensitivity.jl, ``ForwardDiffSensitivity``; Revels, Lubin & Papamarkou, "Forward-mode automatic
    differentiation in Julia" (2016), arXiv:1607.07892.

    Example:
        >>> from pydiffeqflux import ForwardDiffSensitivity
        >>> ForwardDiffSensitivity(chunk_size=4).name
        'ForwardDiffSensitivity'
    """

    chunk_size: int | None = None
    names: ClassVar[tuple[str, ...]] = ("forwarddiff",)

    def __post_init__(self) -> None:
        n = self.chunk_size
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InvalidArgumentError(f"chunk_size={n!r} must be a positive integer, or None for 8.")


@dataclass(frozen=True)
class ReverseDiffAdjoint(SenseAlg):
    """The solver run on numbers that a tape follows, and the tape backwards; for ``backend="julia"`` only.

    The exact gradient of the computed solution, its steps held fixed: what :class:`DiscreteAdjoint` is natively (which,
    on that backend, is another name for this one). Slow: every number of every operation is written down.

    Source: SciMLSensitivity.jl, ``ReverseDiffAdjoint``.

    Example:
        >>> from pydiffeqflux import ReverseDiffAdjoint
        >>> ReverseDiffAdjoint().name
        'ReverseDiffAdjoint'
    """

    names: ClassVar[tuple[str, ...]] = ("reversediff",)


@dataclass(frozen=True)
class TrackerAdjoint(SenseAlg):
    """As :class:`ReverseDiffAdjoint`, by Tracker.jl; for ``backend="julia"`` only.

    Source: SciMLSensitivity.jl, ``TrackerAdjoint``.

    Example:
        >>> from pydiffeqflux import TrackerAdjoint
        >>> TrackerAdjoint().name
        'TrackerAdjoint'
    """

    names: ClassVar[tuple[str, ...]] = ("tracker",)


#: Where vector-Jacobian products come from, see ``autojacvec`` above.
PRODUCTS = ("traced", "forwarddiff", "finitediff", "reversediff", "tracker", "zygote")


def _products(given: bool | str | None) -> str:
    if given is None:
        return "traced"
    if isinstance(given, bool):
        return "forwarddiff" if given else "finitediff"
    name = given.lower().removesuffix("()").removesuffix("vjp") if isinstance(given, str) else given
    if name in ("enzyme", "mooncake", "reactant"):
        raise UnsupportedError(
            f"autojacvec={given!r} is not there: take 'traced' (the default), the products of torch's own trace, which"
            f" are compiled code already, or one of {', '.join(PRODUCTS[1:])}."
        )
    if name not in PRODUCTS:
        raise UnknownNameError("autojacvec", given, PRODUCTS)
    return str(name)


def _check_method(method: Any) -> None:
    """A method for ordinary or for stochastic equations: the solve will say whether it is the right kind."""
    try:
        methods.resolve(method)
    except UnknownNameError:
        if not (isinstance(method, str) and sde_methods.is_known(method)):
            raise


def _check_tolerance(name: str, value: float | None) -> None:
    ok = value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= value < math.inf)
    if not ok:
        raise InvalidToleranceError(f"{name}={value!r} must be a finite number >= 0.")


ALL: tuple[type[SenseAlg], ...] = (
    DiscreteAdjoint,
    BacksolveAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    GaussAdjoint,
    ForwardSensitivity,
)

#: Those of ``backend="julia"`` only.
JULIA: tuple[type[SenseAlg], ...] = (GaussKronrodAdjoint, ForwardDiffSensitivity, ReverseDiffAdjoint, TrackerAdjoint)

_SHADOWING = "pydiffeqflux.shadowing_average(problem, objective, dt=...), which takes backend='julia', too"
#: Further algorithms of SciMLSensitivity, and what there is in their place.
_INSTEAD = {
    "ZygoteAdjoint": "ReverseDiffAdjoint, which is the same gradient: no solver can be run through Zygote",
    "EnzymeAdjoint": "ReverseDiffAdjoint, which is the same gradient",
    "MooncakeAdjoint": "ReverseDiffAdjoint, which is the same gradient",
    "ForwardLSS": _SHADOWING,
    "AdjointLSS": _SHADOWING,
    "NILSS": _SHADOWING,
    "NILSAS": _SHADOWING,
    "SteadyStateAdjoint": "the layer pydiffeqflux.SteadyState, whose gradient that is",
    "ForwardDiffOverAdjoint": "backend='torch' and DiscreteAdjoint(), whose gradient can be differentiated again",
}


def resolve(sensealg: SenseAlg | str | None) -> SenseAlg | None:
    """An object for a name such as ``"GaussAdjoint"`` or ``"gauss"``; objects and ``None`` as they are.

    Raises:
        UnknownNameError: a name that is none of them (the nearest one is in the message).
        UnsupportedError: an algorithm of SciMLSensitivity that there is something else in place of.
    """
    if sensealg is None or isinstance(sensealg, SenseAlg):
        return sensealg
    if isinstance(sensealg, type) and issubclass(sensealg, SenseAlg):
        return sensealg()
    if isinstance(sensealg, str):
        name = sensealg.lower().removesuffix("()")
        for kind in (*ALL, *JULIA):
            if name in (kind.__name__.lower(), *kind.names):
                return kind()
        for other, instead in _INSTEAD.items():
            if name == other.lower():
                raise UnsupportedError(f"sensealg={sensealg!r} is not one of solve's: take {instead}.")
    raise UnknownNameError("sensealg", sensealg, [kind.__name__ for kind in (*ALL, *JULIA)])
