"""
    PyDiffEqFlux

The Julia side of the Python package `pydiffeqflux`: right-hand sides written by a torch tracer, solved by OrdinaryDiffEq
and differentiated by SciMLSensitivity. Every function that the solvers call has a type of its own here (a pointer to
compiled code inside a fixed struct), so that solver and adjoint code is compiled once, when this package is
precompiled, and not for each model.
"""
module PyDiffEqFlux

using ADTypes: AutoFiniteDiff
using ChainRulesCore: ChainRulesCore, NoTangent, unthunk
using DelayDiffEq: DelayDiffEq
using DiffEqFlux: DiffEqFlux
using LinearAlgebra: LinearAlgebra, BLAS
using LuxCore: LuxCore
using OrdinaryDiffEq: OrdinaryDiffEq
using PrecompileTools: @compile_workload, @setup_workload
using Random: AbstractRNG, Xoshiro
using SciMLBase: SciMLBase, ODEFunction, ODEProblem, solve
# Which is pinned: these are the ones that its algorithms run on.
using SciMLSensitivity: SciMLSensitivity, DiffEqNoiseProcess, ForwardDiff, ReverseDiff, Tracker, Zygote
using SpecialFunctions: erf, erfc
using StochasticDiffEq: StochasticDiffEq, StochasticDiffEqCore

include("flat.jl")          # zero-based memory, as emitted code sees it
include("emission.jl")      # the words of emitted code, and how it is compiled
include("interrupt.jl")     # Ctrl-C, and progress
include("kernels.jl")       # compiled right-hand sides, as solvers call them
include("algorithms.jl")    # solvers by name
include("control.jl")       # step size control as Python describes it
include("norm.jl")          # the norm of the error
include("lu.jl")            # the linear equations of stiff solvers
include("sensealgs.jl")     # sensitivity algorithms by name
include("products.jl")      # products of the parameters that these lack
include("implicit.jl")      # mass matrices and fully implicit equations
include("events.jl")        # what may end a solve
include("forward.jl")       # a solve
include("adjoint.jl")       # its gradient
include("through.jl")       # its gradient by numbers that carry derivatives through the solver
include("sensitivities.jl") # its gradient by the sensitivity equations
include("layer.jl")         # a right-hand side as a layer of DiffEqFlux
include("bridge.jl")        # what Python calls
include("place.jl")         # arrays that lie elsewhere
include("direct.jl")        # what it calls again and again, without any ado
include("delay.jl")         # delay equations
include("stochastic.jl")    # stochastic equations, and what Python calls for them
include("stochastic_adjoint.jl") # their adjoint equation
include("theirs.jl")        # DiffEqFlux's own layers
include("door.jl")          # how they are called, and what Python calls for them
include("precompile.jl")    # what is compiled ahead of the first use

end
