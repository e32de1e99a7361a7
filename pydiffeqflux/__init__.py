"""Differential equations for PyTorch: solved and differentiated, natively or by Julia's SciML stack.

``solve(ODEProblem(func, y0, t_span), method)`` for one solve, ``NeuralODE`` as a layer, and
``odeint`` and its family with torchdiffeq's interface.
"""

from __future__ import annotations

from .callbacks import Event, PresetTimeCallback
from .compare import Comparison, compare
from .controllers import IController, PIController, PIDController
from .errors import PyDiffEqFluxError
from .layers.neural_ode import NeuralODE
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
    SciMLMethod,
    Tsit5,
    Vern7,
    Vern9,
)
from .problem import ODEProblem
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
    "Comparison",
    "DiscreteAdjoint",
    "Dopri5",
    "Dopri8",
    "Euler",
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
    "Method",
    "Midpoint",
    "NeuralODE",
    "ODEProblem",
    "PIController",
    "PIDController",
    "PresetTimeCallback",
    "PyDiffEqFluxError",
    "QNDF",
    "QuadratureAdjoint",
    "RK4",
    "Rodas5P",
    "Rosenbrock23",
    "SciMLMethod",
    "SenseAlg",
    "Solution",
    "Stats",
    "Status",
    "Tsit5",
    "Vern7",
    "Vern9",
    "compare",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve",
]
