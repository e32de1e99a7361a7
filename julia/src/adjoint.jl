"""
    Seeds(values)

The gradient of a loss with respect to the saved states, one a column, as SciMLSensitivity asks for it. The first column
that it asked for is how far back the adjoint has come.
"""
struct Seeds{M <: AbstractMatrix}
    values::M
    reached::Base.RefValue{Int}
end
Seeds(values::AbstractMatrix) = Seeds(values, Ref(size(values, 2) + 1))
function (s::Seeds)(out, u, p, t, i)
    s.reached[] = min(s.reached[], i)
    copyto!(out, view(s.values, :, i))
    return nothing
end

"""
    gradient(run, alg, sensealg, seeds; reltol, abstol, tstops)

The gradient of a loss with respect to the initial state and the parameters, given its gradient `seeds` with respect to
the states that `run` returned. Throws an error that begins with `no gradient` where the adjoint does not come back to the
start.
"""
function gradient(run::Run{T}, alg, sensealg, seeds::AbstractMatrix{T}; reltol, abstol, extra...) where {T}
    mass = run.solution.prob.f.mass_matrix
    du0, dp = adjoint(run, run.solution, alg, sensealg, seeds; reltol, abstol, starting(mass)..., extra...)
    return convert(typeof(run.p), vec(weighed(mass, du0))), convert(typeof(run.p), vec(dp))
end

# The forward solve once more, of a function without products: it is the solution's own that the adjoint looks at.
function gradient(run::Run{T}, alg, sensealg::Untraced, seeds::Matrix{T}; reltol, abstol) where {T}
    problem = ODEProblem{true}(differentiable(run.kernels, sensealg), initial(run), ended(run), run.p)
    dense = needsdense(sensealg.algorithm)
    solution = solve(
        problem, alg; dense, save_everystep = dense, again(run)..., (dense ? (;) : (; saveat = run.ts))...
    )
    repeated(solution)
    du0, dp = adjoint(run, solution, alg, sensealg.algorithm, seeds; reltol, abstol)
    return Vector{T}(vec(du0)), Vector{T}(vec(dp))
end

# SciMLSensitivity says nothing of a backward solve that fails; the start is asked for, too, to see that it is reached.
function adjoint(run::Run{T}, solution, alg, sensealg, seeds::AbstractMatrix{T}; options...) where {T}
    t0, ts = first(ended(run)), run.ts
    if first(ts) != t0
        ts, seeds = [t0; ts], hcat(fill!(similar(seeds, size(seeds, 1)), 0), seeds)
    end
    asked = Seeds(seeds)
    found = SciMLSensitivity.adjoint_sensitivities(
        solution, backward(alg); t = ts, dgdu_discrete = asked, sensealg, verbose = SILENT, options...
    )
    k = asked.reached[]
    k == 1 || error("no gradient: the backward solve did not come from t = $(get(ts, k, last(ts))) to t = $(ts[k - 1])")
    return found
end

"That a solve which went well does so again."
function repeated(solution)
    SciMLBase.successful_retcode(solution) ||
        error("no gradient: the solve that it needs ended at t = $(last(solution.t)) with $(solution.retcode)")
end

initial(run::Run) = run.solution.prob.u0
"The time span, up to where the solve came."
ended(run::Run) = (run.solution.prob.tspan[1], run.solution.t[end])

"What the solve was told, for another one that is to take its steps."
again(run::Run) = (; run.options..., verbose = SILENT)
"The same, and to return the same times."
function again_saving(run::Run)
    first, last = ended(run)
    return (;
        again(run)..., saveat = run.ts, save_everystep = false, dense = false, save_start = run.ts[1] == first,
        save_end = run.ts[end] == last
    )
end
