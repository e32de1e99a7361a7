# Where arrays lie. What Python hands over are addresses: those of the CPU's memory, unless a package extension says what
# else they may be (`ext/`). The calls of `bridge.jl` and `direct.jl` ask here, and are the same for all.

"Memory at an address, as the arrays that a right-hand side works on."
memory(::Kernels{T}, address::Integer, sizes::Int...) where {T} = array(T, address, sizes...)
memory(run::Run, address::Integer, sizes::Int...) = memory(run.kernels, address, sizes...)
memory(run, address::Integer, sizes::Int...) = array(eltype(run.us), address, sizes...)

"The same, of integers."
integers(::Kernels, address::Integer, sizes::Int...) = array(Int64, address, sizes...)

"A vector of the CPU's, where a right-hand side's arrays lie."
alongside(::Kernels, x::Vector) = x

"Have the device that the arrays lie on listen; and wait until it has done what it was told."
arrive(x) = nothing
settle(x) = nothing
arrive(run::Run) = arrive(run.kernels)
settle(run::Run) = settle(run.kernels)

"""
    Place

A device with arrays of its own. A package extension that knows one defines a subtype with methods of [`place`](@ref),
`wrapped(place, T, address, sizes)` (memory at an address, not copied), `zeroed(place, T, sizes)`, `arrive` and `settle`.
"""
abstract type Place end

"The device of this number that a package of this name knows. Throws an `ArgumentError` where there is none."
place(::Val, ordinal::Int) = throw(ArgumentError("no device: PyDiffEqFlux has no extension for that package"))
function wrapped end
function zeroed end

"A right-hand side whose code is written for a place's arrays; with the arguments of `bridge_kernels`."
function arraykernels end

"""
    bridge_place(package, ordinal)

A device, by the Julia package that knows it. Throws an `ArgumentError` that begins with `no device` where that is not
installed, or finds none.
"""
function bridge_place(package::AbstractString, ordinal::Int)
    id = Base.identify_package(String(package))
    id === nothing && throw(ArgumentError("no device: the Julia package $package is not installed in Julia's project"))
    # What loads here is newer than this function.
    Base.require(id)
    return hold(Base.invokelatest(place, Val(Symbol(package)), ordinal))
end

function bridge_array_kernels(at::Int, T::AbstractString, n::Int, m::Int, np::Int, nc::Int, ni::Int)
    hold(Base.invokelatest(arraykernels, HELD[at], dtype(T), n, m, np, nc, ni))
end
