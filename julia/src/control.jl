const Solvers = OrdinaryDiffEq.OrdinaryDiffEqCore

"""
    controller(alg, text)

The step size controller for `alg` that `text` describes by six numbers: the coefficients P, I and D, the safety factor, and
the least and the largest factor from one step to the next. With e the scaled error and k the order of its estimate plus
one, the step changes by `safety * e^(-(P+I+D)/k) * e1^((P+2D)/k) * e2^(-D/k)`. Throws an `ArgumentError` that begins with
`no controller` for a solver that has one of its own and no other.
"""
function controller(alg, text::AbstractString)
    P, I, D, safety, low, high = parse.(Float64, split(text))
    alg isa Solvers.CompositeAlgorithm && throw(ArgumentError("no controller but their own for solvers that switch"))
    Solvers.default_controller(Float64, alg) isa Exchangeable ||
        throw(ArgumentError("no controller but its own for $(nameof(typeof(alg)))"))
    k = min(Solvers.alg_order(alg), Solvers.alg_adaptive_order(alg)) + 1
    limits = (; gamma = safety, qmin = low, qmax = high, qmax_first_step = high)
    D == 0 && return Solvers.PIController(Float64, alg; beta1 = (P + I) / k, beta2 = P / k, limits...)
    return Solvers.PIDController(
        Float64, alg; beta = (P + I + D, -(P + 2D), D), accept_safety = 0.81 * safety, limiter = Limiter(safety, low, high)
    )
end

const Exchangeable = Union{
    Solvers.IController, Solvers.PIController, Solvers.PIDController, Solvers.PredictiveController}

"Keeps the change of a step within bounds."
struct Limiter
    safety::Float64
    low::Float64
    high::Float64
end
(l::Limiter)(change) = clamp(l.safety * change, l.low, l.high)

"Keyword arguments of a solve, `control` in Julia's own terms."
function controlled(alg, extra::NamedTuple)
    haskey(extra, :control) || return extra
    return merge(Base.structdiff(extra, (; control = "")), (; controller = controller(alg, extra.control)))
end
