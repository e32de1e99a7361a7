"""
    Seeds(values)

The gradient of a loss with respect to the saved states, one a column, as SciMLSensitivity asks for it.
"""
struct Seeds{T}
    values::Matrix{T}
end
(s::Seeds)(out, u, p, t, i) = (copyto!(out, view(s.values, :, i)); nothing)

"""
    gradient(run, alg, sensealg, seeds; reltol, abstol, tstops)

The gradient of a loss with respect to the initial state and the parameters, given its gradient `seeds` with respect to
the states that `run` returned.
"""
function gradient(run::Run{T}, alg, sensealg, seeds::Matrix{T}; reltol, abstol, extra...) where {T}
    mass = run.solution.prob.f.mass_matrix
    du0,
    dp = SciMLSensitivity.adjoint_sensitivities(
        run.solution, backward(alg); t = run.ts, dgdu_discrete = Seeds(seeds), sensealg, reltol, abstol, verbose = SILENT,
        starting(mass)..., extra...
    )
    return Vector{T}(vec(weighed(mass, du0))), Vector{T}(vec(dp))
end

# The forward solve once more, of a function without products: it is the solution's own that the adjoint looks at.
function gradient(run::Run{T}, alg, sensealg::Untraced, seeds::Matrix{T}; reltol, abstol) where {T}
    problem = ODEProblem{true}(differentiable(run.kernels, sensealg), initial(run), ended(run), run.p)
    dense = needsdense(sensealg.algorithm)
    solution = solve(
        problem, alg; dense, save_everystep = dense, again(run)..., (dense ? (;) : (; saveat = run.ts))...
    )
    du0,
    dp = SciMLSensitivity.adjoint_sensitivities(
        solution, backward(alg); t = run.ts, dgdu_discrete = Seeds(seeds), sensealg = sensealg.algorithm, reltol, abstol,
        verbose = SILENT
    )
    return Vector{T}(vec(du0)), Vector{T}(vec(dp))
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
