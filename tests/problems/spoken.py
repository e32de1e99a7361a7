"""The compiled language, spoken by Python: a program's source run as it stands, slowly but at once."""

from __future__ import annotations

import math
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pydiffeqflux.backends.compiled.emit import emit
from pydiffeqflux.graph import Kernels
from pydiffeqflux.graph.printer import arguments

_FUNCTIONS = "sqrt exp log log1p log2 log10 sin cos tan sinh cosh floor ceil trunc fmod".split()
#: What Python's ``math`` raises an exception for is NaN or infinite here.
_MATH = types.SimpleNamespace(
    **{name: getattr(np, name) for name in _FUNCTIONS},
    **{f"a{f}{h}": getattr(np, f"arc{f}{h}") for f in ("sin", "cos", "tan") for h in ("", "h")},
    atan2=np.arctan2, pow=np.power, tanh=np.tanh, inf=math.inf, nan=math.nan,
    erf=lambda x: np.float64(math.erf(x)), erfc=lambda x: np.float64(math.erfc(x)),
)  # fmt: skip


def _round(x: Any) -> Any:
    return np.round(x)


_WORDS = {
    "math": _MATH, "real": np.float64, "select": lambda c, a, b: a if c else b, "exp": np.exp, "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "maximum": np.maximum, "minimum": np.minimum,
    "sign": np.sign, "round": _round, "Real": float, "Reals": Any, "Ints": Any, "int": int,
    "bool": bool,
}  # fmt: skip


def speak(traced: Kernels, name: str, t: Tensor, y: Tensor, v: Tensor | None = None) -> dict[str, np.ndarray]:
    """One program's results in double precision, by the name of the buffer that they are written to."""
    program = traced.program(name)
    text, work = emit(program)
    space = dict(_WORDS)
    exec(text, space)
    given: dict[str, Any] = {"t": np.float64(float(t)), "y": y.detach().reshape(-1).numpy(), "w": np.full(work, np.nan)}
    given |= {b: traced.pack(traced.graphs.externals, b).numpy() for b in "pci"}
    if v is not None:
        given["v"] = v.reshape(-1).numpy()
    results = {n: np.full(b.size, np.nan) for n, b in program.outputs.items()}
    with np.errstate(all="ignore"):
        space[name](*[results[a] if a in results else given[a] for a in arguments(program)])
    assert y.dtype == torch.float64
    return results
