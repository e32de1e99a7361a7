# Equations that are not solved for the derivative: M u' = f(u, p, t), and F(u', u, p, t) = 0. Initial states come here
# consistent: what is wrong with one was said before.

"`M u' = f`, its `kernels` those of `f`."
struct MassEquation{T}
    kernels::Kernels{T}
    mass::Matrix{T}
end

"""
`F = 0`, its `kernels` a function of the states and, below them, their derivatives; `differential` says which states'
derivatives are in it. It starts with states and derivatives, and gives back states.
"""
struct ImplicitEquation{T}
    kernels::Kernels{T}
    differential::Vector{Bool}
end

"What `forward` solves; plain kernels are `u' = f`."
const Equation{T} = Union{AbstractKernels{T}, MassEquation{T}, ImplicitEquation{T}}

kernelsof(k::AbstractKernels) = k
kernelsof(e::Union{MassEquation, ImplicitEquation}) = e.kernels

"""
    posed(equation, alg, start, p, t0, t1)

The problem, the solver as it suits that, and what else the solve is to be told.
"""
posed(k::AbstractKernels, alg, u0, p, t0, t1) = ODEProblem{true}(odefunction(k), u0, (t0, t1), p), alg, (;)

function posed(e::MassEquation, alg, u0, p, t0, t1)
    ODEProblem{true}(massfunction(e), u0, (t0, t1), p), alg, (; initializealg = SciMLBase.NoInit())
end

function posed(e::ImplicitEquation, alg, start, p, t0, t1)
    n = e.kernels.m
    problem = SciMLBase.DAEProblem{true}(
        Residual(e.kernels), start[(n + 1):end], start[1:n], (t0, t1), p; differential_vars = e.differential
    )
    # Emitted code would have to be compiled for dual numbers.
    return problem, backward(alg), (; initializealg = SciMLBase.NoInit())
end

function massfunction(e::MassEquation{T}) where {T}
    k = e.kernels
    k.jac == C_NULL && throw(ArgumentError("a mass matrix needs a solver that uses the Jacobian"))
    return ODEFunction{true, SciMLBase.FullSpecialize}(
        RightHandSide(k); vjp = PullState(k), vjp_p = PullParameters(k), jac = Jacobian(k), tgrad = TimeGradient(k),
        jac_prototype = zeros(T, k.n, k.n), mass_matrix = e.mass
    )
end

"The residual of a fully implicit equation, as solvers call it."
struct Residual{T} <: Function
    kernels::Kernels{T}
    both::Vector{T}
end
Residual(k::Kernels{T}) where {T} = Residual{T}(k, zeros(T, k.n))
SciMLBase.numargs(::Residual) = (5,)

function (r::Residual{T})(out::Vector{T}, du::Vector{T}, u::Vector{T}, p::Vector{T}, t) where {T}
    copyto!(r.both, 1, u, 1, length(u))
    copyto!(r.both, length(u) + 1, du, 1, length(du))
    evaluate!(out, r.kernels, r.both, p, t)
    return nothing
end

# On numbers that carry derivatives, in the right-hand side's way.
(r::Residual)(out, du, u, p, t) = RightHandSide(r.kernels)(out, [u; du], p, t)

"Bring an adjoint's state to the gradient with respect to the initial state."
weighed(::LinearAlgebra.UniformScaling, lambda) = lambda
weighed(mass::AbstractMatrix, lambda) = mass' * vec(lambda)

# An adjoint with a singular mass matrix is itself an equation with algebraic variables, which jump at every seed.
starting(::LinearAlgebra.UniformScaling) = (;)
starting(::AbstractMatrix) = (; initializealg = SciMLSensitivity.BrownFullBasicInit())

# -- what Python calls; see bridge.jl --

"An equation with a mass matrix, given row by row."
bridge_mass(kernels::Int, mass::Integer) = hold(massequation(HELD[kernels], mass))
massequation(k::Kernels{T}, mass) where {T} = MassEquation(k, permutedims(array(T, mass, k.n, k.n)))

"A fully implicit equation; `flags` are one byte for each state."
bridge_implicit(kernels::Int, flags::Integer) = hold(implicitequation(HELD[kernels], flags))
implicitequation(k::Kernels, flags) = ImplicitEquation(k, Vector{Bool}(array(UInt8, flags, k.m) .!= 0))
