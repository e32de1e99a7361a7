# What Python calls. Arguments are numbers, strings and addresses of memory that the caller keeps alive during the call;
# what lives on, on this side, is known to the caller by a number, so that no Julia object ever reaches torch.

const HELD = Dict{Int, Any}()
const COUNT = Ref(0)

function hold(x)
    COUNT[] += 1
    HELD[COUNT[]] = x
    return COUNT[]
end

"How many things are held."
bridge_held() = length(HELD)

"Let go of what these numbers stand for."
release(handles...) = foreach(h -> delete!(HELD, h), handles)

function array(::Type{T}, address::Integer, sizes::Int...) where {T}
    prod(sizes) == 0 ? Array{T}(undef, sizes...) : unsafe_wrap(Array, Ptr{T}(UInt(address)), sizes)
end

dtype(name::AbstractString) = name == "float32" ? Float32 : Float64

function bridge_kernels(T::AbstractString, n::Int, m::Int, np::Int, nc::Int, ni::Int)
    hold(Kernels(dtype(T), n, m, np, zeros(dtype(T), nc), zeros(Int64, ni)))
end

function bridge_add(kernels::Int, name::AbstractString, source::AbstractString, workspace::Int)
    add!(HELD[kernels], Symbol(name), source, workspace)
end

"Let one of the functions be code of somebody else's, at this address."
bridge_pointer(kernels::Int, name::AbstractString, address::Integer) = point!(HELD[kernels], Symbol(name), address)

bridge_algorithm(text::AbstractString) = hold(factorising(algorithm(text)))

"The names of all solvers, separated by blanks."
bridge_names() = join(algorithms(), ' ')

"See [`abilities`](@ref)."
bridge_kind(alg::Int) = abilities(HELD[alg])

function bridge_sensitivity(name::AbstractString, options::AbstractString)
    hold(sensitivity(name; (kw.args[1] => named(kw.args[2]) for kw in Meta.parse("($options)").args)...))
end

"The constants of a right-hand side, before it is evaluated or solved; none at address 0."
function setconstants!(k::AbstractKernels, c::Integer, i::Integer)
    c == 0 || copyto!(k.c, memory(k, c, length(k.c)))
    i == 0 || copyto!(k.i, integers(k, i, length(k.i)))
    return nothing
end

"""
    bridge_events(kernels...)

A watch over the conditions of events, in this order. What else there is to them is set by [`bridge_event`](@ref).
"""
bridge_events(conditions::Int...) = hold(Watch([HELD[k] for k in conditions]))

function bridge_event(watch::Int, number::Int, p::Integer, c::Integer, i::Integer, direction::Int, halts::Bool)
    w = HELD[watch]
    setconstants!(w.conditions[number], c, i)
    copyto!(w.parameters[number], array(eltype(w.parameters[number]), p, length(w.parameters[number])))
    w.directions[number] = direction
    w.halts[number] = halts
    return nothing
end

"The events that were seen and did not end the solve: number, time, number, time, ..."
bridge_seen(watch::Int) = Tuple(Iterators.flatten(HELD[watch].seen))

"Further keyword arguments of `solve`, written as Julia writes a named tuple: `dt = 0.1, adaptive = false`."
function bridge_options(text::AbstractString)
    hold(NamedTuple(a.args[1] => named(a.args[2]) for a in Meta.parse("($text,)").args))
end

"Write the states that a run returned, one after the other, and their times."
function bridge_states(run::Int, ts::Integer, us::Integer)
    r = HELD[run]
    copyto!(array(Float64, ts, length(r.ts)), r.ts)
    arrive(r)
    copyto!(memory(r, us, size(r.us)...), r.us)
    settle(r)
    return nothing
end

"Write the dense output at `t`."
function bridge_interpolate(run::Int, t::Float64, out::Integer)
    r = HELD[run]
    arrive(r)
    interpolate!(memory(r, out, size(r.us, 1)), r, t)
    settle(r)
    return nothing
end
