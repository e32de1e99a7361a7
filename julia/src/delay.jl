# Delay equations, by DelayDiffEq's method of steps, and their gradient by dual numbers through it.

"""
    Delayed(kernels, history, lags, moving, n, order)

A delay equation with `n` states. The `kernels` are a function of time and of the states one after the other: now, and
at each of the `lags` before; where a lag is NaN it is the next of those that are `moving`, functions of time and state.
`order` is that of the lowest derivative that jumps at the start: 0 where the history ends elsewhere than the state
begins.

Its parameters are those of `kernels` and then those of the `history`, a function of time (and of a number that it does
not look at); or, where that is `nothing`, the state that held all the time before; and those of the moving lags.
"""
struct Delayed{T}
    kernels::Kernels{T}
    history::Union{Nothing, Kernels{T}}
    lags::Vector{Float64}
    moving::Vector{Kernels{T}}
    n::Int
    order::Int
end

"Which of the parameters are the history's."
function ofhistory(d::Delayed)
    first = d.kernels.np + 1
    return first:(first - 1 + (d.history === nothing ? d.n : d.history.np))
end

"The value of a lag that is a function of time and state, the `number`th of these."
function moved(d::Delayed, number::Int, u, p, t)
    out, k = Vector{kind(u, p, t)}(undef, 1), d.moving[number]
    before = last(ofhistory(d)) + sum(k -> k.np, view(d.moving, 1:(number - 1)); init = 0)
    RightHandSide(k)(out, u, view(p, (before + 1):(before + k.np)), t)
    return out[1]
end

"""
Such a lag as DelayDiffEq asks for it, to find breaking points: its search takes plain numbers only. Where a solution and its
rate are continuous there, as they are unless the state jumps at the start, derivatives of these times are errors of the
solver's order. (Python refuses a gradient where it jumps.)
"""
struct MovingLag{T} <: Function
    equation::Delayed{T}
    number::Int
end
(l::MovingLag)(u, p, t) = ForwardDiff.value(moved(l.equation, l.number, u, p, t))

"The right-hand side of a `DDEFunction`."
struct DelayedSide{T} <: Function
    equation::Delayed{T}
end

function (r::DelayedSide)(du, u, h, p, t)
    d = r.equation
    past = Vector{kind(u, p, t)}(undef, d.n)
    z = similar(past, d.n * (1 + length(d.lags)))
    copyto!(z, 1, u, 1, d.n)
    count = 0
    for (i, known) in enumerate(d.lags)
        lag = known
        if isnan(known)
            count += 1
            lag = moved(d, count, u, p, t)
            lag <= 0 && throw(ArgumentError("a lag is not positive: number $i is $(ForwardDiff.value(lag)) at t = $t"))
        end
        h(past, p, t - lag)
        copyto!(z, i * d.n + 1, past, 1, d.n)
    end
    RightHandSide(d.kernels)(du, z, view(p, 1:d.kernels.np), t)
    return nothing
end

# Time is counted in Float64 whatever the states are, but where it carries a derivative.
kind(u, p, t::Float64) = promote_type(eltype(u), eltype(p))
kind(u, p, t) = promote_type(eltype(u), eltype(p), typeof(t))

"The history as DelayDiffEq asks for it."
struct Past{T} <: Function
    equation::Delayed{T}
end

(h::Past)(p, t) = (out = Vector{kind(p, p, t)}(undef, h.equation.n); h(out, p, t); out)

function (h::Past)(out, p, t)
    d = h.equation
    mine = view(p, ofhistory(d))
    if d.history === nothing
        copyto!(out, mine)
    else
        found = Vector{kind(mine, mine, t)}(undef, d.n)
        RightHandSide(d.history)(found, zeros(eltype(p), 1), mine, t)
        copyto!(out, found)
    end
    return nothing
end

"A finished solve; as [`Run`](@ref), but for the equation and what it was solved with."
struct DelayedRun{T, S, A, O}
    solution::S
    equation::Delayed{T}
    alg::A
    p::Vector{T}
    ts::Vector{Float64}
    us::Matrix{T}
    nf::Int
    options::O
end

function ddeproblem(d::Delayed, u0, t0, t1, p)
    SciMLBase.DDEProblem{true}(
        SciMLBase.DDEFunction{true, SciMLBase.FullSpecialize}(DelayedSide(d)), u0, Past(d), (t0, t1), p;
        constant_lags = filter(!isnan, d.lags), dependent_lags = [MovingLag(d, i) for i in eachindex(d.moving)],
        order_discontinuity_t0 = d.order
    )
end

"Solve a delay equation; the arguments are those of the other `forward`."
function forward(
        d::Delayed{T}, alg, u0::Vector{T}, p::Vector{T}, t0::Float64, t1::Float64, saves::Vector{Float64};
        keep::String, dense::Bool, reltol, abstol, maxiters::Int, tstops::Vector{Float64}, extra...
) where {T}
    d.kernels.nf = 0
    solver = DelayDiffEq.MethodOfSteps(alg)
    everystep = dense || (isempty(saves) && keep == "steps")
    # Where the right-hand side jumps the solution has a kink, which comes back a lag later.
    kinks = [DelayDiffEq.Discontinuity(t, 1) for t in tstops]
    # Delayed states are interpolated whatever is saved: without `calck` Rosenbrock methods keep nothing to do that with.
    options = (; reltol, abstol, maxiters, tstops, d_discontinuities = kinks, calck = true, extra...)
    solution = solve(
        ddeproblem(d, u0, t0, t1, p), solver; saveat = everystep ? Float64[] : saves, save_everystep = everystep,
        save_start = everystep || (!isempty(saves) && saves[1] == t0),
        save_end = everystep || isempty(saves) || saves[end] == t1, dense, verbose = SILENT, options...
    )
    nf = d.kernels.nf
    ts, us = collected(solution, saves, keep)
    if !isempty(saves) && (isempty(ts) || ts[end] != solution.t[end])
        # It stopped on the way: where it did is returned behind the others, for the loss may see it.
        ts, us = [ts; solution.t[end]], [us columns(u0, solution.u[end:end])]
    end
    return DelayedRun(solution, d, solver, p, ts, us, nf, options)
end

interpolate!(out, run::DelayedRun, t::Float64) = (run.solution(out, t); nothing)

"""
    gradient(run, seeds, chunk)

The gradient with respect to the initial state and the parameters, given its gradient with respect to the states that
`run` returned: SciMLSensitivity's `ForwardDiffSensitivity`, the solver on dual numbers, with the same number of
derivatives at a time for every model.
"""
function gradient(run::DelayedRun{T}, seeds::Matrix{T}, chunk::Val = Val(CHUNK)) where {T}
    d, (t0, _) = run.equation, run.solution.prob.tspan
    # A Jacobian in dual numbers of dual numbers is refused by DelayDiffEq; by differences it is not.
    alg = DelayDiffEq.MethodOfSteps(backward(run.alg.alg))
    # Errors of the derivatives count, too: there may be more steps, even where these were too many already.
    options = (; run.options..., maxiters = 1000 + 10 * run.options.maxiters)
    function states(duals)
        solution = solve(
            ddeproblem(d, duals[1:d.n], t0, run.solution.t[end], duals[(d.n + 1):end]), alg; saveat = run.ts,
            save_everystep = false, dense = false, save_start = run.ts[1] == t0,
            save_end = run.ts[end] == run.solution.t[end], verbose = SILENT, options...
        )
        length(solution.u) == length(run.ts) ||
            throw(ErrorException("the solver came to an end of its own on dual numbers"))
        return solution.u
    end
    found = bychunks(states, [run.solution.prob.u0; run.p], seeds, chunk)
    return found[1:d.n], found[(d.n + 1):end]
end

# -- what Python calls; see bridge.jl --

"""
    bridge_delayed(kernels, history, lags, nlags, n, order, moving...)

A delay equation of compiled functions; `history` is zero where the state before the start is among the parameters, and a
lag NaN where it is the next of the `moving`.
"""
function bridge_delayed(kernels::Int, history::Int, lags::Integer, nlags::Int, n::Int, order::Int, moving::Int...)
    k = HELD[kernels]
    before, constant = history == 0 ? nothing : HELD[history], copy(array(Float64, lags, nlags))
    return hold(Delayed(k, before, constant, typeof(k)[HELD[m] for m in moving], n, order))
end

"Solve it; returns the run's number, how many states it returned, and how it went."
function bridge_delayed_solve(
        equation::Int, alg::Int, y0::Integer, p::Integer, np::Int, t0::Float64, t1::Float64, saves::Integer, nsaves::Int,
        keep::AbstractString, dense::Bool, rtol::Integer, atol::Integer, ntol::Int, maxiters::Int, stops::Integer,
        nstops::Int, options::Int, last::Integer, constants::Integer...
)
    setconstants!(HELD[equation], constants...)
    return delayed_started(
        HELD[equation], HELD[alg], y0, p, np, t0, t1, copy(array(Float64, saves, nsaves)), String(keep), dense,
        tolerance(rtol, ntol), tolerance(atol, ntol), maxiters, copy(array(Float64, stops, nstops)),
        options == 0 ? (;) : HELD[options], last
    )
end

"The constants of the right-hand side, of the history where that is a function, and of the moving lags: two addresses each."
function setconstants!(d::Delayed, constants::Integer...)
    functions = d.history === nothing ? [d.kernels; d.moving] : [d.kernels; d.history; d.moving]
    foreach((k, c, i) -> setconstants!(k, c, i), functions, constants[1:2:end], constants[2:2:end])
    return nothing
end

function delayed_started(
        d::Delayed{T}, alg, y0, p, np, t0, t1, saves, keep, dense, reltol, abstol, maxiters, tstops, extra, last
) where {T}
    run = forward(
        d, alg, copy(array(T, y0, d.n)), copy(array(T, p, np)), t0, t1, saves;
        keep, dense, reltol, abstol, maxiters, tstops, extra...
    )
    ended = run.solution.u[end]
    copyto!(array(T, last, d.n), ended)
    stats = run.solution.stats
    return (
        hold(run), length(run.ts), Int(run.solution.retcode), Float64(run.solution.t[end]), run.nf, stats.naccept,
        stats.nreject, all(isfinite, ended)
    )
end

"Write the gradient with respect to the initial state and the parameters."
function bridge_delayed_gradient(run::Int, seeds::Integer, du0::Integer, dp::Integer, chunk::Int, constants::Integer...)
    setconstants!(HELD[run].equation, constants...)
    delayed_pulled!(HELD[run], seeds, du0, dp, Val(chunk == 0 ? CHUNK : chunk))
    return nothing
end

function delayed_pulled!(run::DelayedRun{T}, seeds, du0, dp, chunk) where {T}
    to_u0, to_p = gradient(run, copy(array(T, seeds, size(run.us)...)), chunk)
    copyto!(array(T, du0, length(to_u0)), to_u0)
    copyto!(array(T, dp, length(to_p)), to_p)
    return nothing
end
