"""torchdiffeq's interface: its four functions, with their names, arguments, defaults and warnings."""

from __future__ import annotations

from .adjoint import odeint_adjoint
from .interface import odeint, odeint_dense, odeint_event

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
