"""
    TorchLayer(kernels, p, sizes)

A traced torch module as a Lux layer: its parameters are the flat vector `p`, its derivative is the traced one. A value has
`sizes`, in Julia's order (features first, the batch last). Every layer of DiffEqFlux takes it; a module that also depends on
time is taken at time zero, for DiffEqFlux hands its models no time.

Numbers may carry derivatives: those of ForwardDiff (in the derivative of a derivative) run through the emitted functions,
for those of Tracker a whole evaluation is one entry of the tape.
"""
struct TorchLayer{T, N} <: LuxCore.AbstractLuxLayer
    kernels::Kernels{T}
    p::Vector{T}
    sizes::NTuple{N, Int}
end

LuxCore.initialparameters(::AbstractRNG, layer::TorchLayer) = copy(layer.p)
LuxCore.initialstates(::AbstractRNG, ::TorchLayer) = (;)
LuxCore.parameterlength(layer::TorchLayer) = length(layer.p)
LuxCore.statelength(::TorchLayer) = 0
(layer::TorchLayer)(x, p, st::NamedTuple) = (value(layer, x, p), st)

# Lux takes the rows of a Jacobian in tasks, and a layer's memory is for one at a time.
const TURN = ReentrantLock()

"The layer's value at `x`."
value(layer::TorchLayer, x::AbstractArray, p::AbstractVector) = reshape(at(layer, vec(x), vec(p)), layer.sizes)

function at(layer::TorchLayer{T}, x::AbstractVector{<:Plain}, p::AbstractVector{<:Plain}) where {T}
    out = Vector{T}(undef, layer.kernels.m)
    @lock TURN evaluate!(out, layer.kernels, flattened(T, x), flattened(T, p), zero(T))
    return out
end
function at(layer::TorchLayer{T}, x::AbstractVector, p::AbstractVector) where {T}
    out = Vector{promote_type(eltype(x), eltype(p))}(undef, layer.kernels.m)
    generic(layer.kernels, :f, x, p, zero(T), out)
    return out
end

"The vector-Jacobian products with the layer's derivatives in `x` and in `p`."
function pulled(layer::TorchLayer{T}, v::AbstractVector{<:Plain}, x::AbstractVector{<:Plain}, p::AbstractVector{<:Plain}) where {T}
    k = layer.kernels
    gx, gp = Vector{T}(undef, k.n), Vector{T}(undef, k.np)
    @lock TURN pull!(gx, gp, k.gt, k, flattened(T, v), flattened(T, x), flattened(T, p), zero(T))
    return gx, gp
end
function pulled(layer::TorchLayer{T}, v::AbstractVector, x::AbstractVector, p::AbstractVector) where {T}
    k = layer.kernels
    S = promote_type(eltype(v), eltype(x), eltype(p))
    gx, gp, gt, w = (Vector{S}(undef, n) for n in (k.n, k.np, 1, length(k.w)))
    givenup()
    Base.invokelatest(k.emitted[:vjp], zero(T), map(Shifted, (x, v, p, k.c, k.i, w, gx, gp, gt))...)
    return gx, gp
end

flattened(::Type{T}, x) where {T} = convert(Vector{T}, vec(x))

function ChainRulesCore.rrule(::typeof(value), layer::TorchLayer, x::AbstractArray, p::AbstractVector)
    function pullback(seed)
        gx, gp = pulled(layer, vec(unthunk(seed)), vec(x), vec(p))
        return NoTangent(), NoTangent(), reshape(gx, size(x)), gp
    end
    return value(layer, x, p), pullback
end

value(layer::TorchLayer, x::Tracker.TrackedArray, p::Tracker.TrackedArray) = Tracker.track(value, layer, x, p)
value(layer::TorchLayer, x::Tracker.TrackedArray, p::AbstractVector) = Tracker.track(value, layer, x, p)
value(layer::TorchLayer, x::AbstractArray, p::Tracker.TrackedArray) = Tracker.track(value, layer, x, p)

Tracker.@grad function value(layer, x, p)
    y, q = Tracker.data(x), Tracker.data(p)
    function pullback(seed)
        gx, gp = pulled(layer, vec(Tracker.data(seed)), vec(y), vec(q))
        return nothing, reshape(gx, size(y)), gp
    end
    return value(layer, y, q), pullback
end
