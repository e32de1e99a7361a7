# The calls that a training loop makes in every iteration, as plain C functions: Python calls them by address, with one
# struct of numbers and addresses each. The layouts are those of `pydiffeqflux/backends/julia/direct.py`.

"""
What to solve: `equation` is one, or kernels. Addresses are of memory that the caller keeps alive during the call. `main` is 1 on Python's main thread;
`sensealg` is 0 where no gradient is wanted, `options` and `watch` where there are none. `rtol` and `atol` are `ntol`
numbers: one, or one for each state. `us` has room for all saves (0 where there are none), `last` for one state.
"""
struct Ask
    main::Int64
    equation::Int64
    alg::Int64
    sensealg::Int64
    options::Int64
    watch::Int64
    points::Int64
    everystep::Int64
    dense::Int64
    maxiters::Int64
    nsaves::Int64
    saves::Int64
    nstops::Int64
    stops::Int64
    ntol::Int64
    rtol::Int64
    atol::Int64
    y0::Int64
    p::Int64
    c::Int64
    i::Int64
    us::Int64
    last::Int64
    t0::Float64
    t1::Float64
end

"What came of it: the run's number, how many states were reached, how it went, and the event that ended it, or 0."
struct Came
    run::Int64
    count::Int64
    retcode::Int64
    nf::Int64
    naccept::Int64
    nreject::Int64
    njac::Int64
    finite::Int64
    event::Int64
    t::Float64
end

"Which gradient: `seeds` is the loss's with respect to the states that the run returned, in their order."
struct Pull
    main::Int64
    run::Int64
    alg::Int64
    sensealg::Int64
    seeds::Int64
    du0::Int64
    dp::Int64
    c::Int64
    i::Int64
    rtol::Float64
    atol::Float64
end

"One evaluation."
struct Evaluation
    main::Int64
    kernels::Int64
    y::Int64
    p::Int64
    c::Int64
    i::Int64
    out::Int64
    t::Float64
end

# Parts that were loaded since this package was compiled are newer than the code here: calls go through dispatch.

function solved(a::Ask)
    watch = a.watch == 0 ? nothing : HELD[a.watch]
    extra = a.options == 0 ? (;) : HELD[a.options]
    if watch !== nothing
        watch.hit = 0
        empty!(watch.seen)
        extra = merge(extra, (; callback = callback(watch, Int(a.points))))
    end
    sensealg = a.sensealg == 0 ? nothing : HELD[a.sensealg]
    dense = a.dense != 0 || (sensealg !== nothing && needsdense(sensealg))
    return solved(HELD[a.equation], HELD[a.alg], a, dense, extra, watch)::Came
end

function solved(e::Equation{T}, alg, a::Ask, dense::Bool, extra::NamedTuple, watch) where {T}
    k = kernelsof(e)
    arrive(k)
    setconstants!(k, a.c, a.i)
    run = forward(
        e, alg, copy(memory(k, a.y0, k.n)), copy(memory(k, a.p, k.np)),
        a.t0, a.t1, copy(array(Float64, a.saves, a.nsaves));
        keep = a.everystep != 0 ? "steps" : "end", dense, reltol = tolerance(k, a.rtol, a.ntol),
        abstol = tolerance(k, a.atol, a.ntol), maxiters = a.maxiters, tstops = copy(array(Float64, a.stops, a.nstops)), extra...
    )
    a.us == 0 || copyto!(memory(k, a.us, length(run.us)), run.us)
    copyto!(memory(k, a.last, k.m), laststate(run))
    settle(k)
    code, t, nf, naccept, nreject, njac, finite = outcome(run)
    return Came(
        hold(run), length(run.ts), Int(code), nf, naccept, nreject, njac, finite, watch === nothing ? 0 : watch.hit, t
    )
end

tolerance(address::Integer, n::Integer) = n == 1 ? unsafe_load(Ptr{Float64}(address)) : copy(array(Float64, address, n))
function tolerance(k::AbstractKernels, address::Integer, n::Integer)
    found = tolerance(address, n)
    return found isa Vector ? alongside(k, found) : found
end

pulled(a::Pull) = pulled(HELD[a.run], HELD[a.alg], HELD[a.sensealg], a)

function pulled(run::Run{T}, alg, sensealg, a::Pull) where {T}
    arrive(run.kernels)
    setconstants!(run.kernels, a.c, a.i)
    to_u0,
    to_p = gradient(
        run, alg, sensealg, copy(memory(run.kernels, a.seeds, size(run.us)...)); reltol = a.rtol, abstol = a.atol
    )
    copyto!(memory(run.kernels, a.du0, length(to_u0)), to_u0)
    copyto!(memory(run.kernels, a.dp, length(to_p)), to_p)
    settle(run.kernels)
    return nothing
end

evaluated(a::Evaluation) = evaluated(HELD[a.kernels], a)

function evaluated(k::AbstractKernels, a::Evaluation)
    arrive(k)
    setconstants!(k, a.c, a.i)
    evaluate!(memory(k, a.out, k.m), k, memory(k, a.y, k.n), memory(k, a.p, k.np), a.t)
    settle(k)
    return nothing
end

# -- as C functions: 0, or 1 after an error, which `bridge_raise` throws; no exception may leave them ---------------

const FAILED = Ref{Any}(nothing)

function guarded(work, main::Int64)
    listening(main != 0)
    try
        work()
        return Cint(0)
    catch error
        FAILED[] = CapturedException(error, catch_backtrace())
        return Cint(1)
    finally
        listening(false)
    end
end

function solve_entry(at::Ptr{Ask}, into::Ptr{Came})
    ask = unsafe_load(at)
    return guarded(() -> (unsafe_store!(into, solved(ask)); nothing), ask.main)
end

function pull_entry(at::Ptr{Pull})
    pull = unsafe_load(at)
    return guarded(() -> pulled(pull), pull.main)
end

function evaluate_entry(at::Ptr{Evaluation})
    one = unsafe_load(at)
    return guarded(() -> evaluated(one), one.main)
end

function release_entry(handles::Ptr{Int64}, n::Int64)
    return guarded(() -> foreach(k -> delete!(HELD, unsafe_load(handles, k)), 1:n), 0)
end

"The addresses of the C functions, and of the one by which a thread says that it is not running Julia."
function bridge_entries()
    return Tuple(
        Int(UInt(address))
    for address in (
        @cfunction(solve_entry, Cint, (Ptr{Ask}, Ptr{Came})),
        @cfunction(pull_entry, Cint, (Ptr{Pull},)),
        @cfunction(evaluate_entry, Cint, (Ptr{Evaluation},)),
        @cfunction(release_entry, Cint, (Ptr{Int64}, Int64)),
        cglobal(:jl_gc_safe_enter),
        cglobal(:jl_gc_unsafe_enter)
    )
    )
end

"Throw what kept the last C function from its work."
bridge_raise() = throw(FAILED[])

"The names of the return codes: number, name, number, name, ..."
bridge_retcodes() = join((string(Int(code), ' ', code) for code in instances(SciMLBase.ReturnCode.T)), ' ')
