"""Differential equations for PyTorch: solved and differentiated, natively or by Julia's SciML stack.

``solve(ODEProblem(func, y0, t_span), method)`` for one solve, ``NeuralODE`` as a layer, and
``odeint`` and its family with torchdiffeq's interface.
"""

from __future__ import annotations

from typing import Any

from .callbacks import Event, PresetTimeCallback
from .compare import Comparison, compare
from .controllers import IController, PIController, PIDController
from .dae_problem import DAEProblem
from .dde_problem import DDEProblem
from .dynamical import SeparableField
from .ensemble.problem import EnsembleProblem
from .ensemble.solution import EnsembleSolution, EnsembleSummary
from .ensemble.solve import solve_ensemble
from .errors import PyDiffEqFluxError
from .layers.augmented import AugmentedNDELayer, AugmentedNeuralODE
from .layers.basis import ChebyshevBasis, CosBasis, FourierBasis, LegendreBasis, PolynomialBasis, SinBasis, basis
from .layers.control import SplineControl
from .layers.dim_mover import DimMover
from .layers.ffjord import FFJORD, FFJORDDistribution
from .layers.hamiltonian import HamiltonianNN, SeparableHamiltonian
from .layers.lagrangian import LagrangianNN
from .layers.mass_matrix import NeuralMassMatrixODE
from .layers.neural_cde import NeuralCDE
from .layers.neural_dae import NeuralDAE
from .layers.neural_dde import NeuralDDE
from .layers.neural_ode import NeuralODE
from .layers.neural_sde import NeuralDSDE, NeuralSDE
from .layers.second_order import SecondOrderNeuralODE
from .layers.spline import SplineLayer
from .layers.steady_state import SteadyState
from .layers.tensor_product import TensorProductLayer
from .layers.universal import UniversalODE
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
    CandyRoz4,
    Dopri5,
    Dopri8,
    Euler,
    Fehlberg2,
    Heun,
    KahanLi8,
    KenCarp4,
    Kvaerno5,
    Leapfrog,
    McAte4,
    Method,
    Midpoint,
    Rodas5P,
    Rosenbrock23,
    Ruth3,
    SciMLMethod,
    Symplectic,
    SymplecticEuler,
    Tsit5,
    VelocityVerlet,
    Vern7,
    Vern9,
    Yoshida6,
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
    SciMLSDEMethod,
    SDEHeun,
    SDEMethod,
    SDEMidpoint,
)
from .sde_problem import SDEProblem
from .sensealg import (
    BacksolveAdjoint,
    DiscreteAdjoint,
    ForwardDiffSensitivity,
    ForwardSensitivity,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    ReverseDiffAdjoint,
    SenseAlg,
    TrackerAdjoint,
)
from .shadowing import shadowing_average
from .solution import EventRecord, Solution, Stats, Status
from .solve import solve
from .torchdiffeq_api import odeint, odeint_adjoint, odeint_dense, odeint_event
from .torchsde_api import sdeint, sdeint_adjoint
from .training.collocation import collocate_data
from .training.matching import collocation_pretrain
from .training.multiple_shooting import group_ranges, multiple_shoot

__version__ = "0.2.0"

__all__ = [
    "ABM4",
    "AugmentedNDELayer",
    "AugmentedNeuralODE",
    "AutoDopri5",
    "AutoSwitch",
    "AutoTsit5",
    "AutoVern7",
    "AutoVern9",
    "BacksolveAdjoint",
    "Bosh3",
    "CandyRoz4",
    "ChebyshevBasis",
    "Comparison",
    "CosBasis",
    "DDEProblem",
    "DAEProblem",
    "DimMover",
    "DiscreteAdjoint",
    "Dopri5",
    "Dopri8",
    "EM",
    "EnsembleProblem",
    "EnsembleSolution",
    "EnsembleSummary",
    "Euler",
    "EulerHeun",
    "Event",
    "EventRecord",
    "FFJORD",
    "FFJORDDistribution",
    "Fehlberg2",
    "ForwardDiffSensitivity",
    "ForwardSensitivity",
    "FourierBasis",
    "GaussAdjoint",
    "GaussKronrodAdjoint",
    "HamiltonianNN",
    "Heun",
    "IController",
    "InterpolatingAdjoint",
    "KahanLi8",
    "KenCarp4",
    "Kvaerno5",
    "LagrangianNN",
    "Leapfrog",
    "LegendreBasis",
    "LogODE",
    "McAte4",
    "Method",
    "Midpoint",
    "Milstein",
    "NeuralCDE",
    "NeuralDDE",
    "NeuralDAE",
    "NeuralDSDE",
    "NeuralMassMatrixODE",
    "NeuralODE",
    "NeuralSDE",
    "ODEProblem",
    "PIController",
    "PIDController",
    "PolynomialBasis",
    "PresetTimeCallback",
    "PyDiffEqFluxError",
    "QNDF",
    "QuadratureAdjoint",
    "ReverseDiffAdjoint",
    "RK4",
    "ReversibleHeun",
    "Rodas5P",
    "Rosenbrock23",
    "Ruth3",
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
    "SciMLMethod",
    "SciMLSDEMethod",
    "SecondOrderNeuralODE",
    "SenseAlg",
    "SeparableField",
    "SeparableHamiltonian",
    "SinBasis",
    "Solution",
    "SplineControl",
    "SplineLayer",
    "Stats",
    "Status",
    "SteadyState",
    "Symplectic",
    "SymplecticEuler",
    "TensorProductLayer",
    "TrackerAdjoint",
    "Tsit5",
    "UniversalODE",
    "VelocityVerlet",
    "Vern7",
    "Vern9",
    "Yoshida6",
    "basis",
    "collocate_data",
    "collocation_pretrain",
    "compare",
    "group_ranges",
    "multiple_shoot",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "sdeint",
    "sdeint_adjoint",
    "shadowing_average",
    "solve",
    "solve_ensemble",
]


def __getattr__(name: str) -> Any:
    """torchsde's Brownian motions and base classes, imported when first asked for."""
    from . import torchsde_api

    if name in torchsde_api.HANDED_ON:
        return getattr(torchsde_api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
