"""DiffEqFlux's layer for continuous normalising flows: FFJORD, and what its distribution samples by."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ....errors import UnsupportedError
from ....problem import ODEProblem
from ...common.rhs import Rhs
from .call import Layer, torch_part
from .forms import Form, Tracer, timed
from .ordinary import SENSEALGS

#: What differentiates samples: dual numbers through what makes them.
SENSEALGS_SAMPLES = ("ForwardDiffSensitivity",)


def layer_of(problem: ODEProblem, trace: Tracer) -> Layer:
    """The layer for the log-densities of samples; or for the samples that are carried to given points.

    Samples are rows, ``(batch, n)``. A clock is one more entry of a sample: it does not change a trace.

    Raises:
        UnsupportedError: what DiffEqFlux's FFJORD does wrongly, or not at all.

    Zygote fails on the reversed time span of samples; dual numbers do not.
    """
    flow, inverse = problem.func.model, problem.func.inverse  # type: ignore[attr-defined]
    _check(flow)
    x, n = problem.packed, flow.input_dims.numel()
    with torch.no_grad():
        Rhs(problem.func, problem.spec, x)(problem.t0.value, x)  # its result is checked, and its failure explained
    samples = x.reshape(-1, n)
    batch = x.shape[: x.dim() - len(flow.input_dims)]

    def field(t: Tensor, z: Tensor) -> Tensor:
        out: Tensor = flow.rhs(t, z.reshape(x.shape))
        return out.reshape(-1, n)

    def with_clock(t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([field(z[0, n], z[:, :n]), torch.ones_like(z[:, :1])], 1)

    # The trace is made of products, whoever wants a gradient.
    always = Tracer(trace.models, trace.t0, wanted=True, spec=trace.spec)
    model = always(Form(problem.func, "samples"), field, samples, "the field of the flow")
    clock = timed(model)
    if clock:
        # From the other end where the flow is run backwards.
        now = (problem.t1 if inverse else problem.t0).value
        samples = torch.cat([samples, samples.new_full((len(samples), 1), now)], 1)
        model = always(Form(problem.func, "samples, clock"), with_clock, samples, "the field of the flow")
    count, size = samples.shape
    parts = [torch_part(model, [size, count])]
    if not inverse and (clock or flow.basedist is not None):
        density = flow.base_log_prob if flow.basedist is None else unchecked(flow.basedist).log_prob
        base = trace(
            Form(flow if flow.basedist is None else flow.basedist, ("base", clock)),
            lambda t, z: density(z[:, :n].reshape(-1, *flow.input_dims)),
            samples,
            "the base distribution",
        )
        if base.params:
            raise UnsupportedError(
                "basedist has parameters that require a gradient, which a base distribution of DiffEqFlux's FFJORD has"
                " not: detach them, or use backend='julia' or 'torch'."
            )
        parts.append(torch_part(base, [count]))

    def read(numbers: Tensor) -> Tensor:
        return (numbers[:, :n].reshape(x.shape) if inverse else numbers.reshape(batch))[None]

    return Layer(
        "FFJORDDistribution" if inverse else "FFJORD",
        tuple(parts),
        samples,
        (size, count),
        read,
        SENSEALGS_SAMPLES if inverse else SENSEALGS,
        more=[size],
        saves=(),
    )


def _check(flow: Any) -> None:
    instead = "use backend='julia' or 'torch'."
    if flow.trace != "exact":
        raise UnsupportedError(
            f"trace={flow.trace!r} on backend='diffeqflux': DiffEqFlux's FFJORD draws new noise at every evaluation,"
            f" and then solves no differential equation; say trace='exact', or {instead}"
        )
    if flow.regularize:
        raise UnsupportedError(
            f"regularize=True on backend='diffeqflux': DiffEqFlux's FFJORD takes the regularisers from the wrong axis;"
            f" leave it out, or {instead}"
        )


def unchecked(distribution: Distribution) -> Distribution:
    """The same distribution, which does not look at its samples' values: that cannot be traced."""
    found = copy.copy(distribution)
    for name, part in vars(distribution).items():
        if isinstance(part, Distribution):
            setattr(found, name, unchecked(part))
    found._validate_args = False
    return found
