"""
    TorchLayer(kernels, p, sizes)

A traced torch module as a Lux layer: its parameters are the flat vector `p`, its derivative is the traced one. `sizes`
are the state's, in Julia's order (features first, the batch last). Every layer of DiffEqFlux takes it; a module that
also depends on time is taken at time zero, for DiffEqFlux hands its models no time.
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

"The layer's value at `x`."
function value(layer::TorchLayer{T}, x::AbstractArray, p::AbstractVector) where {T}
    out = Vector{T}(undef, layer.kernels.n)
    evaluate!(out, layer.kernels, flattened(T, x), flattened(T, p), zero(T))
    return reshape(out, size(x))
end

flattened(::Type{T}, x) where {T} = convert(Vector{T}, vec(x))

function ChainRulesCore.rrule(::typeof(value), layer::TorchLayer{T}, x::AbstractArray, p::AbstractVector) where {T}
    y, flat = flattened(T, x), flattened(T, p)
    function pullback(seed)
        gy, gp = Vector{T}(undef, length(y)), Vector{T}(undef, length(flat))
        v = flattened(T, unthunk(seed))
        pull!(gy, gp, layer.kernels.gt, layer.kernels, v, y, flat, zero(T))
        return NoTangent(), NoTangent(), reshape(gy, size(x)), gp
    end
    return value(layer, x, p), pullback
end

"""
    neuralode(layer, tspan, alg; options...)

DiffEqFlux's `NeuralODE` around a traced module.
"""
neuralode(layer::TorchLayer, tspan, alg; options...) = DiffEqFlux.NeuralODE(layer, tspan, alg; options...)
