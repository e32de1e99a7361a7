# The norm of the scaled error, by which steps are accepted and sized, as somebody else has it. It is of one type whatever
# the model and the norm: code for it is compiled once, and for those who ask for it.

"A norm that was traced as a right-hand side is: a function of a state, with one value."
struct TracedNorm{T} <: Function
    kernels::Kernels{T}
    p::Vector{T}
    value::Vector{T}
end
TracedNorm(k::Kernels{T}, p::Vector{T}) where {T} = TracedNorm{T}(k, p, zeros(T, 1))

function (r::TracedNorm{T})(u::Memory1{T}, t) where {T}
    # Of a part of the state (the algebraic variables) nobody has said anything.
    length(u) == r.kernels.n || return Solvers.DiffEqBase.ODE_DEFAULT_NORM(u, t)
    evaluate!(r.value, r.kernels, u, r.p, t)
    return r.value[1]
end

# Solvers take the size of single numbers by it, too.
(r::TracedNorm)(u, t) = Solvers.DiffEqBase.ODE_DEFAULT_NORM(u, t)

# -- what Python calls; see bridge.jl --

"The same keyword arguments (0: none), and this norm."
function bridge_norm(options::Int, kernels::Int, p::Integer, c::Integer, i::Integer)
    setconstants!(HELD[kernels], c, i)
    return hold(merge(options == 0 ? (;) : HELD[options], (; internalnorm = tracednorm(HELD[kernels], p))))
end
tracednorm(k::Kernels{T}, p) where {T} = TracedNorm(k, copy(array(T, p, k.np)))
