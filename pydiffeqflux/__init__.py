"""Differential equations for PyTorch: solved and differentiated, natively or by Julia's SciML stack.

``solve(ODEProblem(func, y0, t_span), method)`` for one solve, ``NeuralODE`` as a layer, and
``odeint`` and its family with torchdiffeq's interface.
"""

from __future__ import annotations

from typing import Any

from .callbacks import Event, PresetTimeCallback
from .controllers import IController, PIController, PIDController
from .errors import PyDiffEqFluxError
from .layers.neural_ode import NeuralODE
from .layers.neural_sde import NeuralDSDE, NeuralSDE
from .methods import (
    ABM4,
    QNDF,
    RK4,
    AutoDopri5,
    AutoSwitch,
    AutoTsit5,
    AutoVern7,
    AutoVern9,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Heun,
    KenCarp4,
    Kvaerno5,
    Method,
    Midpoint,
    Rodas5P,
    Rosenbrock23,
    Tsit5,
    Vern7,
    Vern9,
)
from .problem import ODEProblem
from .sde_methods import (
    EM,
    SOSRA,
    SOSRI,
    SRA1,
    SRA3,
    SRIW1,
    SRIW2,
    EulerHeun,
    LogODE,
    Milstein,
    ReversibleHeun,
    SDEHeun,
    SDEMethod,
    SDEMidpoint,
)
from .sde_problem import SDEProblem
from .sensealg import (
    BacksolveAdjoint,
    DiscreteAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    SenseAlg,
)
from .solution import EventRecord, Solution, Stats, Status
from .solve import solve
from .torchdiffeq_api import odeint, odeint_adjoint, odeint_dense, odeint_event
from .torchsde_api import sdeint, sdeint_adjoint

__version__ = "0.1.0"

__all__ = [
    "ABM4",
    "AutoDopri5",
    "AutoSwitch",
    "AutoTsit5",
    "AutoVern7",
    "AutoVern9",
    "BacksolveAdjoint",
    "Bosh3",
    "DiscreteAdjoint",
    "Dopri5",
    "Dopri8",
    "EM",
    "Euler",
    "EulerHeun",
    "Event",
    "EventRecord",
    "Fehlberg2",
    "ForwardSensitivity",
    "GaussAdjoint",
    "Heun",
    "IController",
    "InterpolatingAdjoint",
    "KenCarp4",
    "Kvaerno5",
    "LogODE",
    "Method",
    "Midpoint",
    "Milstein",
    "NeuralDSDE",
    "NeuralODE",
    "NeuralSDE",
    "ODEProblem",
    "PIController",
    "PIDController",
    "PresetTimeCallback",
    "PyDiffEqFluxError",
    "QNDF",
    "QuadratureAdjoint",
    "RK4",
    "ReversibleHeun",
    "Rodas5P",
    "Rosenbrock23",
    "SDEHeun",
    "SDEMethod",
    "SDEMidpoint",
    "SDEProblem",
    "SOSRA",
    "SOSRI",
    "SRA1",
    "SRA3",
    "SRIW1",
    "SRIW2",
    "SenseAlg",
    "Solution",
    "Stats",
    "Status",
    "Tsit5",
    "Vern7",
    "Vern9",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "sdeint",
    "sdeint_adjoint",
    "solve",
]


def __getattr__(name: str) -> Any:
    """torchsde's Brownian motions and base classes, imported when first asked for."""
    from . import torchsde_api

    if name in torchsde_api.HANDED_ON:
        return getattr(torchsde_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
