# Stochastic equations dy = drift dt + diffusion dW. The parameters are one vector: the drift's, then the diffusion's.

"""
    Drift(kernels)

The traced drift, as StochasticDiffEq calls it: in place, and (for tapes) out of place.
"""
struct Drift{T} <: Function
    kernels::Kernels{T}
end

"""
    Diffusion(kernels, before, blocks)

The traced diffusion; its parameters come after `before` others. `blocks = (rows, d, m)` are the numbers of rows, of states
and of Brownian motions in a row. Values are one for each state where m is zero; otherwise a matrix for each row, and
together a matrix with a block for each row.
"""
struct Diffusion{T} <: Function
    kernels::Kernels{T}
    before::Int
    blocks::NTuple{3, Int}
    values::Vector{T}
    seeds::Vector{T}
end
Diffusion(k::Kernels{T}, before::Int, blocks) where {T} = Diffusion{T}(k, before, blocks, zeros(T, k.m), zeros(T, k.m))

const Traced{T} = Union{Drift{T}, Diffusion{T}}

mine(f::Drift, p) = view(p, 1:f.kernels.np)
mine(g::Diffusion, p) = view(p, (g.before + 1):(g.before + g.kernels.np))

sizes(f::Drift) = (f.kernels.n,)
sizes(g::Diffusion) = g.blocks[3] == 0 ? (g.kernels.n,) : (g.kernels.n, g.blocks[1] * g.blocks[3])

(f::Drift{T})(du, u::Memory1{T}, p::Memory1{T}, t) where {T} = evaluate!(du, f.kernels, u, mine(f, p), t)
function (g::Diffusion{T})(du, u::Memory1{T}, p::Memory1{T}, t) where {T}
    evaluate!(g.values, g.kernels, u, mine(g, p), t)
    return spread!(du, g, g.values)
end

"Put the values of a diffusion where they belong in what it multiplies the noise with."
spread!(du::AbstractVector, ::Diffusion, values) = copyto!(du, values)
function spread!(du::AbstractMatrix, g::Diffusion, values)
    rows, d, m = g.blocks
    fill!(du, zero(eltype(du)))
    for b in 0:(rows - 1), i in 1:d, j in 1:m
        du[b * d + i, b * m + j] = values[(b * d + i - 1) * m + j]
    end
    return nothing
end

"The other way: what belongs to the values, from something shaped like the diffusion."
gathered(::Traced, v::AbstractVector) = v
function gathered(g::Diffusion{T}, v::AbstractMatrix) where {T}
    rows, d, m = g.blocks
    for b in 0:(rows - 1), i in 1:d, j in 1:m
        g.seeds[(b * d + i - 1) * m + j] = v[b * d + i, b * m + j]
    end
    return g.seeds
end

# -- out of place, on a tape of Tracker: a whole evaluation is one entry, its derivative the traced one ----------------

(f::Traced)(u, p, t) = amount(f, u, p, t)

function amount(f::Traced{T}, u::AbstractVector, p::AbstractVector, t) where {T}
    out = Array{T}(undef, sizes(f))
    f(out, flattened(T, u), flattened(T, p), Float64(t))
    return out
end
amount(f::Traced, u::Tracker.TrackedArray, p::Tracker.TrackedArray, t) = Tracker.track(amount, f, u, p, t)
amount(f::Traced, u::Tracker.TrackedArray, p::AbstractVector, t) = Tracker.track(amount, f, u, p, t)
amount(f::Traced, u::AbstractVector, p::Tracker.TrackedArray, t) = Tracker.track(amount, f, u, p, t)

Tracker.@grad function amount(f, u, p, t)
    T = eltype(f.kernels.gt)
    y, flat = flattened(T, Tracker.data(u)), flattened(T, Tracker.data(p))
    function pullback(seed)
        gy, gp = pulled(f, Tracker.data(seed), y, flat, t)
        return nothing, gy, gp, nothing
    end
    return amount(f, y, flat, t), pullback
end

"The vector-Jacobian products in the state and in all parameters."
function pulled(f::Traced{T}, seed, y, p, t) where {T}
    k, gp = f.kernels, zeros(T, length(p))
    gy, mygp = Vector{T}(undef, k.n), Vector{T}(undef, k.np)
    pull!(gy, mygp, k.gt, k, flattened(T, gathered(f, seed)), y, mine(f, p), Float64(t))
    mine(f, gp) .= mygp
    return gy, gp
end

# -- the noise -----------------------------------------------------------------------------------

"""
    RowWise(draw, d)

Noise of which all `d` entries of a row are the same: one Brownian motion a row.
"""
struct RowWise{F} <: Function
    draw::F
    d::Int
end
function (r::RowWise)(out, arguments...)
    r.draw(out, arguments...)
    for first in 1:(r.d):length(out)
        out[first:(first + r.d - 1)] .= out[first]
    end
    return out
end

"""
    Path(ts, W, Z)

A Brownian path at the times that steps end at, one time a column. `Z` is the second motion that some methods ask for; it
has no columns where there is none.
"""
struct Path{T}
    ts::Vector{Float64}
    W::Matrix{T}
    Z::Matrix{T}
end
columns(x::Matrix) = isempty(x) ? nothing : [x[:, i] for i in axes(x, 2)]
noise(path::Path) = DiffEqNoiseProcess.NoiseGrid(copy(path.ts), columns(path.W), columns(path.Z))

"The same for a tape: increments that are not written over by those of the next step."
function lasting(grid::DiffEqNoiseProcess.NoiseGrid{T, N, A, B, C, D, E, true}) where {T, N, A, B, C, D, E}
    fields = (getfield(grid, x) for x in fieldnames(typeof(grid)))
    return DiffEqNoiseProcess.NoiseGrid{T, N, A, B, C, D, E, false}(fields...)
end

"The path that a solve went along."
function path(::Type{T}, W) where {T}
    Z = W.Z === nothing ? Matrix{T}(undef, 0, 0) : Matrix{T}(reduce(hcat, W.Z))
    return Path{T}(Vector{Float64}(W.t), Matrix{T}(reduce(hcat, W.W)), Z)
end

# -- a solve -------------------------------------------------------------------------------------

"""
    Stochastic(drift, diffusion, scalar)

An equation. `scalar` says that the noise of a row is one Brownian motion.
"""
struct Stochastic{T}
    drift::Drift{T}
    diffusion::Diffusion{T}
    scalar::Bool
end

struct StochasticRun{T, S}
    solution::S
    equation::Stochastic{T}
    u0::Vector{T}
    p::Vector{T}
    path::Path{T}
    ts::Vector{Float64}
    us::Matrix{T}
    nf::Int
    ng::Int
end

function problem(e::Stochastic{T}, u0, tspan, p, noise; inplace) where {T}
    matrix = e.diffusion.blocks[3] == 0 ? nothing : zeros(T, sizes(e.diffusion))
    f = SciMLBase.SDEFunction{inplace, SciMLBase.FullSpecialize}(e.drift, e.diffusion)
    return SciMLBase.SDEProblem{inplace}(f, e.diffusion, u0, tspan, p; noise, noise_rate_prototype = matrix)
end

"Steps of StochasticDiffEq along a path that is known: one from each of its times to the next."
along(path::Path) = (; adaptive = false, dt = maximum(diff(path.ts)), tstops = path.ts)

"""
    forward(equation, alg, u0, p, t0, t1, saves; keep, seed, path, limits...)

Solve from `u0`, along the `path` or, where it is nothing, one of the seed's that is drawn as steps are chosen.
"""
function forward(
        e::Stochastic{T}, alg, u0::Vector{T}, p::Vector{T}, t0::Float64, t1::Float64, saves::Vector{Float64};
        keep::String, seed::UInt64, path::Union{Nothing, Path{T}}, tstops, extra...
) where {T}
    steps = (; tstops = sort!(union(saves, tstops)))
    process = nothing
    if path !== nothing
        process, steps = noise(path), along(path)
    elseif e.scalar
        process = rowwise(e, alg, t0, seed)
    end
    prob = problem(e, u0, (t0, t1), p, process; inplace = true)
    e.drift.kernels.nf = e.diffusion.kernels.nf = 0
    everystep = isempty(saves) && keep == "steps"
    solution = solve(
        prob, alg; saveat = saves, save_everystep = everystep, save_noise = true, seed,
        save_start = everystep || (!isempty(saves) && saves[1] == t0), save_end = true, verbose = SILENT, extra..., steps...
    )
    ts, us = collected(solution, saves, keep)
    gone = path === nothing ? PyDiffEqFlux.path(T, solution.W) : path
    return StochasticRun(solution, e, u0, p, gone, ts, us, e.drift.kernels.nf, e.diffusion.kernels.nf)
end

"One Brownian motion a row, drawn while steps are chosen."
function rowwise(e::Stochastic{T}, alg, t0, seed) where {T}
    zero_ = zeros(T, e.drift.kernels.n)
    second = StochasticDiffEqCore.alg_needs_extra_process(alg) ? zeros(T, e.drift.kernels.n) : nothing
    d = e.diffusion.blocks[2]
    return DiffEqNoiseProcess.NoiseProcess{true}(
        t0, zero_, second, RowWise(DiffEqNoiseProcess.INPLACE_WHITE_NOISE_DIST, d),
        RowWise(DiffEqNoiseProcess.INPLACE_WHITE_NOISE_BRIDGE, d); rng = Xoshiro(seed), reseed = false
    )
end

"How it went, in the order of `outcome` of an ODE; evaluations of the diffusion take the Jacobians' place."
function outcome(run::StochasticRun)
    stats = run.solution.stats
    return (
        string(run.solution.retcode), Float64(run.solution.t[end]), run.nf, stats.naccept, stats.nreject, run.ng,
        all(isfinite, run.solution.u[end])
    )
end

# -- its gradient --------------------------------------------------------------------------------

"""
    gradient(run, alg, name, seeds)

The gradient of a loss with respect to the initial state and all parameters, given its gradient `seeds` with respect to the
states that `run` returned. `"TrackerAdjoint"` differentiates the very steps that were taken, `"BacksolveAdjoint"` solves the
stochastic adjoint equation backwards along the same path.
"""
function gradient(run::StochasticRun{T}, alg, name::AbstractString, seeds::Matrix{T}) where {T}
    name == "TrackerAdjoint" && return replayed(run, alg, seeds)
    name == "BacksolveAdjoint" && return backsolved(run, seeds)
    throw(ArgumentError("unknown sensealg: $name for a stochastic equation"))
end

function replayed(run::StochasticRun{T}, alg, seeds) where {T}
    ends = (run.path.ts[1], run.path.ts[end])
    prob = problem(run.equation, run.u0, ends, run.p, lasting(noise(run.path)); inplace = false)
    return deeply() do
        _,
        back = SciMLBase._concrete_solve_adjoint(
            prob, alg, SciMLSensitivity.TrackerAdjoint(), run.u0, run.p, SciMLBase.ChainRulesOriginator();
            saveat = run.ts, save_everystep = false, save_start = run.ts[1] == ends[1], save_end = true,
            verbose = SILENT, along(run.path)...
        )
        found = back(seeds)
        Vector{T}(vec(found[4])), Vector{T}(vec(found[5]))
    end
end

"Call a function on a stack of a gigabyte (of which only what is used is taken): Tracker follows its tape by recursion."
function deeply(f)
    task = Task(f, 2^30)
    task.sticky = true
    schedule(task)
    try
        return fetch(task)
    catch error
        throw(error isa TaskFailedException ? task.exception : error)
    end
end

# -- methods and what Python calls ---------------------------------------------------------------

"""
    stochastic(text, stratonovich)

The solver of StochasticDiffEq that `text` names, as one would write it in Julia: `"SOSRI"`, `"EM(false)"`,
`"RKMilCommute()"`. Those that know both interpretations take the one that is asked for. Throws an `ArgumentError` that
begins with `unknown solver` for a name that is none.
"""
function stochastic(text::AbstractString, stratonovich::Bool)
    written = Meta.parse(text)
    name,
    arguments = written isa Symbol ? (written, []) :
                written isa Expr && written.head === :call ?
                (written.args[1], written.args[2:end]) : (nothing, [])
    kind = name isa Symbol && isdefined(StochasticDiffEq, name) ? getfield(StochasticDiffEq, name) : nothing
    kind isa Type && kind <: SciMLBase.AbstractDEAlgorithm || throw(ArgumentError("unknown solver: $text"))
    positional = Any[named(a) for a in arguments if !(a isa Expr && a.head in (:kw, :parameters))]
    keywords = Any[a.args[1] => named(a.args[2]) for a in arguments if a isa Expr && a.head === :kw]
    if stratonovich && name in (:RKMil, :RKMilCommute, :RKMilGeneral)
        push!(keywords, :interpretation => SciMLBase.AlgorithmInterpretation.Stratonovich)
    end
    return kind(positional...; keywords...)
end

"The names of the solvers for stochastic equations, separated by blanks."
function bridge_stochastic_names()
    is(name) = (
        x = getfield(StochasticDiffEq, name); x isa Type && x <: SciMLBase.AbstractDEAlgorithm && !isabstracttype(x))
    return join(sort!([string(n) for n in names(StochasticDiffEq) if isdefined(StochasticDiffEq, n) && is(n)]), ' ')
end

"A solver's number; whether it is for Stratonovich equations, chooses its steps, and asks for a second motion."
function bridge_stochastic_algorithm(text::AbstractString, stratonovich::Bool)
    alg = stochastic(text, stratonovich)
    meant = SciMLBase.alg_interpretation(alg) == SciMLBase.AlgorithmInterpretation.Stratonovich
    return hold(alg), meant, SciMLBase.isadaptive(alg), StochasticDiffEqCore.alg_needs_extra_process(alg)
end

"An equation of two right-hand sides; see [`Diffusion`](@ref) for `rows`, `d` and `m`."
function bridge_stochastic(drift::Int, diffusion::Int, rows::Int, d::Int, m::Int, scalar::Bool)
    f, g = HELD[drift], HELD[diffusion]
    return hold(Stochastic(Drift(f), Diffusion(g, f.np, (rows, d, m)), scalar))
end

"Set the constants of a right-hand side."
bridge_constants(kernels::Int, c::Integer, i::Integer) = setconstants!(HELD[kernels], c, i)

"Whether a solver is for the noise of an equation."
function bridge_stochastic_fits(equation::Int, alg::Int)
    e = HELD[equation]
    T = eltype(e.diffusion.values)
    prob = problem(e, zeros(T, e.drift.kernels.n), (0.0, 1.0), T[], nothing; inplace = true)
    return StochasticDiffEqCore.alg_compatible(prob, HELD[alg])
end

"""
    bridge_stochastic_solve(equation, alg, y0, p, t0, t1, saves, nsaves, keep, rtol, atol, ntol, maxiters, stops, nstops,
        seed, ts, nts, W, Z, options, us, last)

As `bridge_solve`. `ts`, `W` and `Z` are a path at the times of steps (none where `nts` is zero; `Z` may be zero).
"""
function bridge_stochastic_solve(
        equation::Int, alg::Int, y0::Integer, p::Integer, t0::Float64, t1::Float64, saves::Integer, nsaves::Int,
        keep::AbstractString, rtol::Integer, atol::Integer, ntol::Int, maxiters::Int, stops::Integer, nstops::Int, seed::Int,
        ts::Integer, nts::Int, W::Integer, Z::Integer, options::Int, us::Integer, last::Integer
)
    e = HELD[equation]
    T, n = eltype(e.diffusion.values), e.drift.kernels.n
    width = e.diffusion.blocks[3] == 0 ? n : sizes(e.diffusion)[2]
    known = nts == 0 ? nothing :
            Path{T}(
        copy(array(Float64, ts, nts)), copy(array(T, W, width, nts)), Z == 0 ? zeros(T, 0, 0) :
                                                                      copy(array(T, Z, width, nts))
    )
    run = forward(
        e, HELD[alg], copy(array(T, y0, n)), copy(array(T, p, e.drift.kernels.np + e.diffusion.kernels.np)), t0, t1,
        copy(array(Float64, saves, nsaves)); keep = String(keep), seed = UInt64(seed), path = known,
        tstops = copy(array(Float64, stops, nstops)), reltol = tolerance(rtol, ntol), abstol = tolerance(atol, ntol),
        maxiters, (options == 0 ? (;) : HELD[options])...
    )
    us == 0 || copyto!(array(T, us, size(run.us)...), run.us)
    copyto!(array(T, last, n), run.solution.u[end])
    return (hold(run), length(run.ts), outcome(run)...)
end

"Write the gradient with respect to the initial state and all parameters."
function bridge_stochastic_gradient(run::Int, alg::Int, name::AbstractString, seeds::Integer, du0::Integer, dp::Integer)
    r = HELD[run]
    T = eltype(r.us)
    to_u0, to_p = gradient(r, HELD[alg], name, copy(array(T, seeds, size(r.us)...)))
    copyto!(array(T, du0, length(to_u0)), to_u0)
    copyto!(array(T, dp, length(to_p)), to_p)
    return nothing
end
