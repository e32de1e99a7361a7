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
        solution = solve(problem, solver; again_saving(run)...)
        length(solution.u) == length(run.ts) && solution.t[end] == run.ts[end] ||
            throw(ErrorException("the solver came to an end of its own on dual numbers ($(solution.retcode))"))
        return solution.u
    end
    found = bychunks(states, [start; run.p], seeds, Val(CS == 0 ? CHUNK : CS))
    return found[1:n], found[(n + 1):end]
end

"The problem of a finished run from another state with other parameters, and its solver, for any kind of number."
function again_posed(::SciMLBase.AbstractODEProblem, run, alg, u0, p)
    ODEProblem{true}(plainfunction(run.kernels), u0, ended(run), p), alg
end

function again_posed(posed::SciMLBase.AbstractDAEProblem, run, alg, u0, p)
    du0, u0 = consistent(Residual(run.kernels), posed.du0, posed.differential_vars, posed.tspan[1], u0, p)
    problem = SciMLBase.DAEProblem{true}(
        Residual(run.kernels), du0, u0, ended(run), p; posed.differential_vars
    )
    return problem, backward(alg)
end

"""
    consistent(residual, du0, known, t, u0, p)

Derivatives and states whose algebraic variables carry the derivatives that the equations give them: a solver that starts
elsewhere would have its error tests fail over those. Differential variables, those that are `known`, keep the derivatives that they have.
"""
function consistent(residual, du0, known, t, u0::Vector{D}, p::Vector{D}) where {T, D <: ForwardDiff.Dual{<:Any, T}}
    u, du = ifelse.(known, u0, D.(ForwardDiff.value.(u0))), D.(du0)
    out = similar(u)
    # The unknowns are the differential variables' derivatives and the algebraic variables.
    matrix = zeros(T, length(u), length(u))
    plain(x) = D.(ForwardDiff.value.(x))
    for j in eachindex(u)
        shifted = known[j] ? (plain(du), plain(u)) : (plain(u), plain(du))
        x = shifted[1]
        x[j] = D(ForwardDiff.value(x[j]), ForwardDiff.Partials(ntuple(s -> T(s == 1), ForwardDiff.npartials(D))))
        known[j] ? residual(out, x, shifted[2], plain(p), t) : residual(out, shifted[2], x, plain(p), t)
        matrix[:, j] .= ForwardDiff.partials.(out, 1)
    end
    residual(out, du, u, p, t)
    factors = LinearAlgebra.lu(matrix)
    for slot in 1:ForwardDiff.npartials(D)
        change = factors \ ForwardDiff.partials.(out, slot)
        for j in eachindex(u)
            x = known[j] ? du : u
            known_so_far = ForwardDiff.partials(x[j]).values
            x[j] = D(
                ForwardDiff.value(x[j]),
                ForwardDiff.Partials(Base.setindex(known_so_far, known_so_far[slot] - change[j], slot))
            )
        end
    end
    return du, u
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
