"""
    Run(solution, kernels, ts, us)

A finished solve: the times that were asked for and the states there, one a column.
"""
struct Run{T, S, K <: AbstractKernels{T}, V <: AbstractVector{T}, M <: AbstractMatrix{T}}
    solution::S
    kernels::K
    p::V
    ts::Vector{Float64}
    us::M
    nf::Int
    njac::Int
    "The keyword arguments of the solve, for algorithms that solve again."
    options::NamedTuple
end

"""
    forward(equation, alg, u0, p, t0, t1, saves; keep, tolerances and limits)

Solve from `u0`. `saves` are the times to return; without any, `keep` says what is: `"steps"` (every step) or `"end"`.
With `dense` the solution can be evaluated in between.
"""
function forward(
        e::Equation{T}, alg, u0::AbstractVector{T}, p::AbstractVector{T}, t0::Float64, t1::Float64, saves::Vector{Float64};
        keep::String, dense::Bool, reltol, abstol, maxiters::Int, tstops::Vector{Float64}, extra...
) where {T}
    k = kernelsof(e)
    problem, alg, more = posed(e, alg, u0, p, t0, t1)
    extra = (; controlled(alg, (; extra...))..., more...)
    k.nf = k.njac = 0
    everystep = dense || (isempty(saves) && keep == "steps")
    # The dense output is interpolated afterwards; a solver told of both would keep the saves only.
    asked = everystep ? Float64[] : saves
    solution = solve(
        problem, alg; saveat = asked, save_everystep = everystep, save_start = everystep ||
                                                                               (!isempty(saves) && saves[1] == t0),
        save_end = everystep || isempty(saves) || saves[end] == t1, dense, reltol, abstol, maxiters, tstops,
        verbose = SILENT, extra...
    )
    nf, njac = k.nf, k.njac
    ts, us = collected(solution, saves, keep)
    return Run(solution, k, p, ts, us, nf, njac, (; reltol, abstol, maxiters, tstops, extra...))
end

const SILENT = OrdinaryDiffEq.OrdinaryDiffEqCore.SciMLLogging.None()

"The times that were asked for, as far as the solve came, and the states there."
function collected(solution, saves::Vector{Float64}, keep::String)
    start = solution.prob.u0
    if isempty(saves)
        kept = keep == "steps" ? eachindex(solution.t) : (lastindex(solution.t):lastindex(solution.t))
        return solution.t[kept], columns(start, solution.u[kept])
    end
    if solution.dense
        direction = sign(solution.prob.tspan[2] - solution.prob.tspan[1])
        reached = filter(t -> direction * t <= direction * solution.t[end], saves)
        out = similar(start, length(start), length(reached))
        for (i, t) in enumerate(reached)
            solution(view(out, :, i), t)
        end
        return reached, out
    end
    # The end is among the saved states even where nobody asked for it.
    wanted = [i for (i, t) in enumerate(solution.t) if t in saves]
    return solution.t[wanted], columns(start, solution.u[wanted])
end

function columns(start::AbstractVector, states)
    out = similar(start, length(start), length(states))
    for (i, u) in enumerate(states)
        copyto!(view(out, :, i), u)
    end
    return out
end

"""
    outcome(run)

How it went: return code, last time, evaluations, accepted and rejected steps, Jacobians.
"""
function outcome(run::Run)
    stats = run.solution.stats
    return (
        run.solution.retcode, Float64(run.solution.t[end]), run.nf, stats.naccept, stats.nreject, run.njac,
        all(isfinite, run.solution.u[end])
    )
end

"""
    laststate(run)

The state at the time that was reached.
"""
laststate(run::Run) = run.solution.u[end]

"""
    interpolate!(out, run, t)

The dense output at time `t`.
"""
interpolate!(out, run::Run, t::Float64) = (run.solution(out, t); nothing)
