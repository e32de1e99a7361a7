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
    du0, dp = SciMLSensitivity.adjoint_sensitivities(
        run.solution, alg; t = run.ts, dgdu_discrete = Seeds(seeds), sensealg, reltol, abstol, verbose = SILENT, extra...
    )
    return Vector{T}(vec(du0)), Vector{T}(vec(dp))
end
