"""Pieces of Julia, run in the session that the package has started, and numbers written as Julia writes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pydiffeqflux.backends.julia.session import chosen_julia

D = torch.float64


def julia(code: str) -> Any:
    """The value of Julia code that has ``DiffEqFlux`` (and Lux, Boltz by it): a number, or a vector as a list."""
    from pydiffeqflux.backends.julia.session import session

    running = session()
    names = "const DiffEqFlux = PyDiffEqFlux.DiffEqFlux; const Lux = DiffEqFlux.Lux; const P = PyDiffEqFlux"
    # A module of its own for each piece of code; what comes back are plain numbers.
    text = f"Core.eval(Module(), quote\nimport PyDiffEqFlux\n{names}\n{code}\nend)"

    def work() -> Any:
        found = running.main.seval(text)
        return list(found) if hasattr(found, "__len__") else float(found)

    return running._on_thread(work)


def matrix(x: Tensor) -> str:
    """A tensor ``(rows, columns)`` as a Julia matrix of that size."""
    return "[" + "; ".join(" ".join(repr(float(v)) for v in row) for row in x) + "]"


def vector(x: Tensor) -> str:
    return "[" + ", ".join(repr(float(v)) for v in x.reshape(-1)) + "]"


def columns(values: list[float], rows: int) -> Tensor:
    """What Julia lists column by column, as ``(columns, rows)``."""
    return torch.tensor(values, dtype=D).reshape(-1, rows)


def juliacalls() -> dict[str, str]:
    """The environment in which a plain ``import juliacall`` starts the Julia that pydiffeqflux was pointed at."""
    chosen = chosen_julia()
    found = {"PYTHON_JULIACALL_HANDLE_SIGNALS": "no", "JULIA_CONDAPKG_BACKEND": "Null"}
    if chosen.julia and chosen.project:
        found |= {"PYTHON_JULIACALL_EXE": chosen.julia, "PYTHON_JULIACALL_PROJECT": chosen.project}
    return found | ({"JULIA_DEPOT_PATH": chosen.depot} if chosen.depot else {})
