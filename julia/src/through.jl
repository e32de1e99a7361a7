# Algorithms that differentiate the solver itself: the emitted code takes any kind of number.

"""
    CHUNK

How many derivatives a dual number carries, unless the algorithm says. It is the same for every model, as the solver is
compiled for each number anew.
"""
const CHUNK = 8

"Marks the dual numbers that are ours."
struct Marked end

"""
    gradient(run, alg, ::ForwardDiffSensitivity, seeds; ...)

The solver on dual numbers, for a few states and parameters at a time. SciMLSensitivity's own takes as many derivatives at
once as there are, another type of number for each model.
"""
function gradient(
        run::Run{T}, alg, ::SciMLSensitivity.ForwardDiffSensitivity{CS}, seeds::Matrix{T}; reltol, abstol
) where {T, CS}
    start = initial(run)
    n = length(start)
    function states(duals)
        problem, solver = again_posed(run.solution.prob, run, alg, duals[1:n], duals[(n + 1):end])
        return solve(problem, solver; again_saving(run)...).u
    end
    found = bychunks(states, [start; run.p], seeds, Val(CS == 0 ? CHUNK : CS))
    return found[1:n], found[(n + 1):end]
end

"The problem of a finished run from another state with other parameters, and its solver, for any kind of number."
again_posed(::SciMLBase.AbstractODEProblem, run, alg, u0, p) =
    ODEProblem{true}(plainfunction(run.kernels), u0, ended(run), p), alg

# What the solution's derivative is at the start makes no difference to a solution: it stays a constant.
function again_posed(posed::SciMLBase.AbstractDAEProblem, run, alg, u0, p)
    problem = SciMLBase.DAEProblem{true}(
        Residual(run.kernels), eltype(u0).(posed.du0), u0, ended(run), p; posed.differential_vars
    )
    return problem, backward(alg)
end

"""
    bychunks(states, values, seeds, Val(chunk))

The gradient with respect to `values`: `states` of dual numbers in their place are those at the saved times, and `seeds`
(one column each) the loss's gradient with respect to these.
"""
function bychunks(states, values::Vector{T}, seeds::Matrix{T}, ::Val{chunk}) where {T, chunk}
    D = ForwardDiff.Dual{ForwardDiff.Tag{Marked, T}, T, chunk}
    found = zeros(T, length(values))
    for first in 1:chunk:length(values)
        chosen = first:min(first + chunk - 1, length(values))
        duals = D.(values)
        for (slot, i) in enumerate(chosen)
            duals[i] = D(values[i], ForwardDiff.Partials(ntuple(s -> T(s == slot), chunk)))
        end
        for (i, u) in enumerate(states(duals)), (x, seed) in zip(u, view(seeds, :, i))

            for (slot, at) in enumerate(chosen)
                found[at] += seed * ForwardDiff.partials(x, slot)
            end
        end
    end
    return found
end

"The solver on numbers that a tape follows, and the tape backwards."
function gradient(
        run::Run{T}, alg, sensealg::Union{SciMLSensitivity.ReverseDiffAdjoint, SciMLSensitivity.TrackerAdjoint},
        seeds::Matrix{T}; reltol, abstol
) where {T}
    problem = ODEProblem{true}(plainfunction(run.kernels), copy(initial(run)), ended(run), copy(run.p))
    _,
    pull = SciMLBase._concrete_solve_adjoint(
        problem, alg, sensealg, problem.u0, problem.p, SciMLBase.ChainRulesOriginator(); again_saving(run)...
    )
    found = pull(seeds)
    return Vector{T}(vec(unthunk(found[4]))), Vector{T}(vec(unthunk(found[5])))
end
