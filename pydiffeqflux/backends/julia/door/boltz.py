"""Layers of Boltz as right-hand sides: HamiltonianNN, TensorProductLayer and SplineLayer, inside a NeuralODE."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....errors import BackendUnavailableError
from .call import Part, torch_part
from .forms import Form, Tracer

#: Boltz's names of our bases.
_BASES = {
    "chebyshev": "Chebyshev",
    "legendre": "Legendre",
    "polynomial": "Polynomial",
    "sine": "Sin",
    "cosine": "Cos",
    "fourier": "Fourier",
}
#: What Boltz's splines are made by.
_PACKAGE = "DataInterpolations"
#: What a SplineLayer of Boltz's is made of, by our names of them; it has no Hermite splines of given points alone.
_SPLINES = {
    "constant": "ConstantInterpolation",
    "linear": "LinearInterpolation",
    "quadratic": "QuadraticInterpolation",
    "cubic": "CubicSpline",
}


def part_of(model: Any, y: Tensor, trace: Tracer) -> Part | None:
    """Boltz's own layer for a module that is one of its; None for any other module.

    States are rows, ``(*, d)``: Julia has ``(d, batch)``.

    Raises:
        BackendUnavailableError: Julia lacks the package that Boltz takes its splines from.
    """
    kind = getattr(model, "theirs", "")
    if kind == "HamiltonianNN":
        return _hamiltonian(model, y, trace)
    if kind == "TensorProductLayer" and all(b.name in _BASES for b in model.bases) and model.weight.dtype == y.dtype:
        return _product(model, y, trace)
    if kind == "SplineLayer" and _spline_of_numbers(model, y):
        return _spline(model, y, trace)
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
        _dtype(y),
        names,
        len(model.weight),
        *(b.n for b in model.bases),
    )
    return Part(session, handle, [], [model.weight], model.theirs)


def _spline_of_numbers(model: Any, y: Tensor) -> bool:
    points = model.saved_points
    return model.basis in _SPLINES and points.dim() == 1 and points.dtype == model.grid.dtype == y.dtype


def _spline(model: Any, y: Tensor, trace: Tracer) -> Part:
    session = trace.models.session
    grid, trained = model.grid.detach().contiguous(), "grid" in dict(model.named_parameters())
    kind = _SPLINES[model.basis]
    handle = session.call("bridge_spline", _dtype(y), _PACKAGE, kind, grid.data_ptr(), len(grid), trained)
    if handle == 0:
        raise BackendUnavailableError(
            f"a SplineLayer on backend='diffeqflux' is Boltz's, which needs Julia's package {_PACKAGE}, and the"
            " project has not: run pydiffeqflux setup-julia again, or use backend='julia' or 'torch'."
        )
    return Part(session, handle, [], [model.saved_points, *([model.grid] if trained else [])], model.theirs)


def _dtype(y: Tensor) -> str:
    return str(y.dtype).removeprefix("torch.")
