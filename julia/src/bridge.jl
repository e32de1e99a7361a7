# What Python calls. Arguments are numbers, strings and addresses of memory that the caller keeps alive during the call;
# what lives on, on this side, is known to the caller by a number, so that no Julia object ever reaches torch.

const HELD = Dict{Int, Any}()
const COUNT = Ref(0)

function hold(x)
    COUNT[] += 1
    HELD[COUNT[]] = x
    return COUNT[]
end

"Let go of what these numbers stand for."
release(handles...) = foreach(h -> delete!(HELD, h), handles)

array(::Type{T}, address::Integer, sizes::Int...) where {T} =
    prod(sizes) == 0 ? Array{T}(undef, sizes...) : unsafe_wrap(Array, Ptr{T}(UInt(address)), sizes)

dtype(name::AbstractString) = name == "float32" ? Float32 : Float64

bridge_kernels(T::AbstractString, n::Int, m::Int, np::Int, nc::Int, ni::Int) =
    hold(Kernels(dtype(T), n, m, np, zeros(dtype(T), nc), zeros(Int64, ni)))

bridge_add(kernels::Int, name::AbstractString, source::AbstractString, workspace::Int) =
    add!(HELD[kernels], Symbol(name), source, workspace)

"Let one of the functions be code of somebody else's, at this address."
bridge_pointer(kernels::Int, name::AbstractString, address::Integer) = point!(HELD[kernels], Symbol(name), address)

bridge_algorithm(text::AbstractString) = hold(algorithm(text))

"The names of all solvers, separated by blanks."
bridge_names() = join(algorithms(), ' ')

bridge_isimplicit(alg::Int) = needsjacobian(HELD[alg])

bridge_sensitivity(name::AbstractString, options::AbstractString) =
    hold(sensitivity(name; (kw.args[1] => named(kw.args[2]) for kw in Meta.parse("($options)").args)...))

"Set the constants of a right-hand side, before it is solved."
function bridge_constants(kernels::Int, c::Integer, i::Integer)
    return setconstants!(HELD[kernels], c, i)
end

function setconstants!(k::Kernels{T}, c::Integer, i::Integer) where {T}
    copyto!(k.c, array(T, c, length(k.c)))
    copyto!(k.i, array(Int64, i, length(k.i)))
    return nothing
end

"Evaluate a right-hand side once."
bridge_evaluate(kernels::Int, y::Integer, p::Integer, t::Float64, out::Integer) = call(HELD[kernels], y, p, t, out)

function call(k::Kernels{T}, y::Integer, p::Integer, t::Float64, out::Integer) where {T}
    evaluate!(array(T, out, k.m), k, array(T, y, k.n), array(T, p, k.np), t)
    return nothing
end

"""
    bridge_events(kernels...)

A watch over the conditions of events, in this order. What else there is to them is set by [`bridge_event`](@ref).
"""
bridge_events(conditions::Int...) = hold(Watch([HELD[k] for k in conditions]))

function bridge_event(watch::Int, number::Int, p::Integer, direction::Int, halts::Bool)
    w = HELD[watch]
    copyto!(w.parameters[number], array(eltype(w.parameters[number]), p, length(w.parameters[number])))
    w.directions[number] = direction
    w.halts[number] = halts
    return nothing
end

"The events that were seen and did not end the solve: number, time, number, time, ..."
bridge_seen(watch::Int) = Tuple(Iterators.flatten(HELD[watch].seen))

"""
    bridge_solve(kernels, alg, sensealg, y0, p, t0, t1, saves, nsaves, keep, dense, rtol, atol, ntol, maxiters, stops,
        nstops, watch, points, options, us, last)

Solve; writes the states that were reached to `us` (which has room for all saves; zero where there are none) and the last
one to `last`; returns the run's number and its outcome. `sensealg` is zero where no gradient is wanted, `watch` where there are
no events. `rtol` and `atol` are addresses of `ntol` numbers: one, or one for each state.
"""
function bridge_solve(
        kernels::Int, alg::Int, sensealg::Int, y0::Integer, p::Integer, t0::Float64, t1::Float64, saves::Integer,
        nsaves::Int, keep::AbstractString, dense::Bool, rtol::Integer, atol::Integer, ntol::Int, maxiters::Int,
        stops::Integer, nstops::Int, watch::Int, points::Int, options::AbstractString, us::Integer, last::Integer
    )
    k = HELD[kernels]
    solver = HELD[alg]
    everything = dense || (sensealg != 0 && needsdense(HELD[sensealg]))
    extra = keywords(options)
    hit = () -> 0
    if watch != 0
        HELD[watch].hit = 0
        empty!(HELD[watch].seen)
        extra = merge(extra, (; callback = callback(HELD[watch], points)))
        hit = () -> HELD[watch].hit
    end
    found = started(
        k, solver, y0, p, t0, t1, copy(array(Float64, saves, nsaves)), String(keep), everything,
        tolerance(rtol, ntol), tolerance(atol, ntol), maxiters, copy(array(Float64, stops, nstops)), extra
    )
    written!(HELD[found[1]], us, last)
    return (found..., hit())
end

function written!(run::Run{T}, us::Integer, last::Integer) where {T}
    us == 0 || copyto!(array(T, us, size(run.us)...), run.us)
    copyto!(array(T, last, size(run.us, 1)), laststate(run))
    return nothing
end

function started(
        k::Kernels{T}, solver, y0, p, t0, t1, saves, keep, dense, reltol, abstol, maxiters, tstops, extra
    ) where {T}
    run = forward(
        k, solver, copy(array(T, y0, k.n)), copy(array(T, p, k.np)), t0, t1, saves;
        keep, dense, reltol, abstol, maxiters, tstops, extra...
    )
    return (hold(run), length(run.ts), outcome(run)...)
end

tolerance(address::Integer, n::Int) = n == 1 ? array(Float64, address, 1)[1] : copy(array(Float64, address, n))

"Keyword arguments written as Julia writes a named tuple: `(dt = 0.1, adaptive = false)`; names and literals only."
function keywords(text::AbstractString)
    isempty(text) && return (;)
    return NamedTuple(a.args[1] => named(a.args[2]) for a in Meta.parse("($text,)").args)
end

"Write the states that a run returned, one after the other, and their times."
function bridge_states(run::Int, ts::Integer, us::Integer)
    r = HELD[run]
    copyto!(array(Float64, ts, length(r.ts)), r.ts)
    copyto!(array(eltype(r.us), us, size(r.us)...), r.us)
    return nothing
end

"Write the dense output at `t`."
function bridge_interpolate(run::Int, t::Float64, out::Integer)
    r = HELD[run]
    interpolate!(array(eltype(r.us), out, size(r.us, 1)), r, t)
    return nothing
end

"""
    bridge_gradient(run, alg, sensealg, seeds, du0, dp, rtol, atol)

Write the gradient with respect to the initial state and the parameters. `seeds` is the gradient with respect to the
states that the run returned, in their order.
"""
function bridge_gradient(
        run::Int, alg::Int, sensealg::Int, seeds::Integer, du0::Integer, dp::Integer, rtol::Float64, atol::Float64
    )
    pulled!(HELD[run], HELD[alg], HELD[sensealg], seeds, du0, dp, rtol, atol)
    return nothing
end

function pulled!(run::Run{T}, alg, sensealg, seeds, du0, dp, reltol, abstol) where {T}
    to_u0, to_p = gradient(run, alg, sensealg, copy(array(T, seeds, size(run.us)...)); reltol, abstol)
    copyto!(array(T, du0, length(to_u0)), to_u0)
    copyto!(array(T, dp, length(to_p)), to_p)
    return nothing
end
