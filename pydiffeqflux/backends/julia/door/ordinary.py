"""DiffEqFlux's layers for ordinary differential equations: NeuralODE, AugmentedNDELayer, NeuralODEMM."""

from __future__ import annotations

import torch
from torch import Tensor

from ....problem import ODEProblem
from ...common.mass import MassRhs
from ...common.rhs import Rhs
from ..form import check_mass, whole_mass
from .boltz import part_of
from .call import Layer, torch_part
from .forms import Form, Tracer, ticking, timed, with_clock

#: What differentiates a NeuralODE; DiffEqFlux's default first.
SENSEALGS = ("InterpolatingAdjoint", "GaussAdjoint", "QuadratureAdjoint", "BacksolveAdjoint")
#: InterpolatingAdjoint leaves the algebraic part of an adjoint at zero, and its gradient is wrong without a word;
#: BacksolveAdjoint refuses singular matrices.
SENSEALGS_MASS = ("GaussAdjoint", "QuadratureAdjoint")


def layer_of(problem: ODEProblem, rhs: Rhs, start: Tensor, trace: Tracer) -> Layer:
    """The layer for a problem whose consistent initial state is ``start``."""
    what, shape, n = "the right-hand side", problem.packed.shape, start.numel()
    plain = problem.spec is None and start.dim() > 0 and not isinstance(rhs, MassRhs)
    extra = getattr(problem.func, "extra_dims", 0) if plain else 0

    def read(numbers: Tensor) -> Tensor:
        return numbers[:, :n].reshape(-1, *shape)

    part = part_of(getattr(problem.func, "model", None), start, trace) if plain and not extra else None
    if part is not None:
        with torch.no_grad():
            rhs(problem.t0.value, start)  # its result is checked, and its failure explained
        return Layer("NeuralODE", (part,), start, (shape[-1], n // shape[-1]), read, SENSEALGS)
    model = trace(problem.func, rhs.evaluate, start, what)
    clock = timed(model)
    if extra:
        return _augmented(problem, rhs, start, trace, clock)
    flat = start.reshape(-1)
    if clock:
        flat = ticking(flat, problem.t0.value)
        model = trace(Form(problem.func, "clock"), with_clock(rhs.evaluate, shape, 1.0), flat, what)
    if not isinstance(rhs, MassRhs):
        parts, width = (torch_part(model, flat.shape),), flat.numel()
        return Layer("NeuralODE", parts, flat, (width,), read, SENSEALGS, width=width)
    mass = whole_mass(rhs.mass, start)
    if trace.wanted and (start.requires_grad or model.params):
        check_mass(rhs.mass, mass, "diffeqflux")
    if clock:
        mass = torch.block_diag(mass, torch.ones(1, 1, dtype=mass.dtype))
    return Layer(
        "NeuralODEMM",
        (torch_part(model, flat.shape),),
        flat,
        tuple(flat.shape),
        read,
        SENSEALGS_MASS,
        more=mass.T.reshape(-1).tolist(),
        width=flat.numel(),
        reason="InterpolatingAdjoint, the layer's default, has wrong gradients with a singular mass matrix",
    )


def _augmented(problem: ODEProblem, rhs: Rhs, start: Tensor, trace: Tracer, clock: bool) -> Layer:
    """The zeros that were appended are taken away again, for DiffEqFlux's layer to append them.

    It does so along the last dimension but the batch's: states are rows here, ``(rows, channels)``, with a clock behind
    the channels that were there before.
    """
    extra, dim = problem.func.extra_dims, problem.func.dim  # type: ignore[attr-defined]
    last = start.movedim(dim, -1)
    rows = last.reshape(-1, last.shape[-1])
    own = rows.shape[1] - extra
    begin = rows[:, :own]
    if clock:
        begin = torch.cat([begin, begin.new_full((len(begin), 1), problem.t0.value)], 1)

    def states(z: Tensor) -> Tensor:
        kept = torch.cat([z[..., :own], z[..., own + 1 :]], -1) if clock else z
        return kept.reshape(*z.shape[:-2], *last.shape).movedim(-1, dim if dim < 0 else dim + z.dim() - 2)

    def at(t: Tensor, z: Tensor) -> Tensor:
        out = rhs.evaluate(z[0, own] if clock else t, states(z)).movedim(dim, -1).reshape(rows.shape)
        return torch.cat([out[:, :own], torch.ones_like(z[:, :1]), out[:, own:]], 1) if clock else out

    whole = torch.cat([begin, begin.new_zeros(len(begin), extra)], 1)
    model = trace(Form(problem.func, "augmented"), at, whole, "the right-hand side")
    sizes = (whole.shape[1], whole.shape[0])

    def read(numbers: Tensor) -> Tensor:
        return states(numbers.reshape(-1, *whole.shape))

    return Layer(
        "AugmentedNDELayer", (torch_part(model, sizes),), begin, tuple(begin.shape[::-1]), read, SENSEALGS, more=[extra]
    )
