# Words that emitted code uses and Base lacks. Where Base raises a DomainError, C (and so torch) returns NaN.

nan_sqrt(x) = x < 0 ? oftype(x, NaN) : sqrt(x)
nan_log(x) = x < 0 ? oftype(x, NaN) : log(x)
nan_log2(x) = x < 0 ? oftype(x, NaN) : log2(x)
nan_log10(x) = x < 0 ? oftype(x, NaN) : log10(x)
nan_log1p(x) = x < -1 ? oftype(x, NaN) : log1p(x)
nan_sin(x) = isinf(x) ? oftype(x, NaN) : sin(x)
nan_cos(x) = isinf(x) ? oftype(x, NaN) : cos(x)
nan_tan(x) = isinf(x) ? oftype(x, NaN) : tan(x)
nan_asin(x) = abs(x) > 1 ? oftype(x, NaN) : asin(x)
nan_acos(x) = abs(x) > 1 ? oftype(x, NaN) : acos(x)
nan_acosh(x) = x < 1 ? oftype(x, NaN) : acosh(x)
nan_atanh(x) = abs(x) > 1 ? oftype(x, NaN) : atanh(x)
nan_pow(x, y) = x < 0 && !isinteger(y) ? oftype(x * y, NaN) : x^y
nan_mod(x, y) = iszero(y) || isinf(x) ? oftype(x * y, NaN) : mod(x, y)
sigmoid(x) = inv(one(x) + exp(-x))

"A number of type `T`; numbers that carry derivatives stay what they are."
@inline number(::Type{T}, x::Union{Bool, Integer}) where {T} = T(x)
@inline number(::Type{T}, x) where {T} = x
"A whole number, of a number that is one."
@inline whole(x::Integer) = Int(x)
@inline whole(x) = unsafe_trunc(Int, x)

const WORDS = (
    :Flat, :Shifted, :product!, :number, :whole, :sigmoid, :erf, :erfc,
    :nan_sqrt, :nan_log, :nan_log2, :nan_log10, :nan_log1p, :nan_sin, :nan_cos, :nan_tan, :nan_asin, :nan_acos,
    :nan_acosh, :nan_atanh, :nan_pow, :nan_mod
)

# A function does not keep its type, nor the module that both are of.
const HOMES = Module[]

"""
    home(T)

A module of its own for an emitted function, with `T` (the dtype) and the words that they use.
"""
function home(::Type{T}) where {T}
    place = Module(:Emitted)
    push!(HOMES, place)
    Core.eval(place, :(const T = $T))
    for word in WORDS
        Core.eval(place, :(const $word = $(getfield(PyDiffEqFlux, word))))
    end
    return place
end

# The arguments of the emitted functions, in the order in which `pydiffeqflux.graph.printer.arguments` lists them.
const ARGUMENTS = (
    f = (:t, :y, :p, :c, :i, :w, :out),
    vjp = (:t, :y, :v, :p, :c, :i, :w, :gy, :gp, :gt),
    vjp_y = (:t, :y, :v, :p, :c, :i, :w, :gy),
    jac = (:t, :y, :p, :c, :i, :w, :J, :ft)
)

# Compiled code is never freed: a right-hand side that is traced again gets what it had before.
const COMPILED = Dict{Tuple{DataType, Symbol, String}, Tuple{Any, Ptr{Cvoid}}}()

"""
    compiled(T, name, source, workspace)

An emitted function that works in so many numbers, compiled, and a pointer to it that is called with plain pointers.
"""
function compiled(::Type{T}, name::Symbol, source::AbstractString, workspace::Int) where {T}
    get!(() -> define!(home(T), name, source, workspace), COMPILED, (T, name, String(source)))
end

# Up to so many numbers are kept where the compiler sees that nobody else looks at them: most are then never stored.
const OWN = 64

function define!(place::Module, name::Symbol, source::AbstractString, workspace::Int)
    include_string(place, source, string(name, ".jl"))
    arguments = ARGUMENTS[name]
    T = place.T
    types = Any[a === :t ? Float64 : a === :i ? Ptr{Int64} : Ptr{T} for a in arguments]
    entry = Symbol(name, :_entry)
    passed = Any[a === :t ? :(T(t)) : :(Flat($a)) for a in arguments]
    typed = [:($a::$S) for (a, S) in zip(arguments, types)]
    call = :($name($(passed...)))
    if 0 < workspace <= OWN
        passed[findfirst(==(:w), arguments)] = :(Flat(Ptr{T}(pointer_from_objref(own))))
        call = quote
            own = Ref{NTuple{$workspace, T}}()
            GC.@preserve own @inline $name($(passed...))
        end
    end
    Core.eval(place, :(function $entry($(typed...))
        $call
        return nothing
    end))
    pointer = Core.eval(place, :(@cfunction($entry, Cvoid, ($(types...),))))::Ptr{Cvoid}
    return Core.eval(place, name), pointer
end
