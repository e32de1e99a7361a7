"""Layers of Boltz as right-hand sides: HamiltonianNN and TensorProductLayer, inside a NeuralODE."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .call import Part, torch_part
from .forms import Form, Tracer

#: Boltz's names of our bases. Its Chebyshev basis begins with T_1, not with the constant: such a layer is traced. So is
#: any other for a gradient: what Boltz's layer gives back for the state is a thunk, which SciMLSensitivity cannot copy.
_BASES = {"legendre": "Legendre", "polynomial": "Polynomial", "sine": "Sin", "cosine": "Cos", "fourier": "Fourier"}


def part_of(model: Any, y: Tensor, trace: Tracer) -> Part | None:
    """Boltz's own layer for a module that is one of its; None for any other module.

    States are rows, ``(*, d)``: Julia has ``(d, batch)``.
    """
    kind = getattr(model, "theirs", "")
    if kind == "HamiltonianNN":
        return _hamiltonian(model, y, trace)
    known = kind == "TensorProductLayer" and all(b.name in _BASES for b in model.bases)
    if known and not trace.wanted and model.weight.dtype == y.dtype:
        return _product(model, y, trace)
    return None


def _hamiltonian(model: Any, y: Tensor, trace: Tracer) -> Part:
    def energy(t: Tensor, z: Tensor) -> Tensor:
        found: Tensor = model.energy(z)
        return found.reshape(-1)

    # The field is made of the energy's products, whoever wants a gradient.
    always = Tracer(trace.models, trace.t0, wanted=True, spec=trace.spec)
    traced = always(Form(model, "energy"), energy, y, "the energy")
    inner = torch_part(traced, [1, y.numel() // y.shape[-1]])
    session = traced.session
    return Part(session, session.call("bridge_hamiltonian", inner.handle), inner.models, inner.params, model.theirs)


def _product(model: Any, y: Tensor, trace: Tracer) -> Part:
    session = trace.models.session
    names = " ".join(_BASES[b.name] for b in model.bases)
    handle = session.call(
        "bridge_product",
        str(y.dtype).removeprefix("torch."),
        names,
        len(model.weight),
        *(b.n for b in model.bases),
    )
    return Part(session, handle, [], [model.weight], model.theirs)
