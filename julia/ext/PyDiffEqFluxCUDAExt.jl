"The arrays of CUDA.jl."
module PyDiffEqFluxCUDAExt

using CUDA: CUDA, CuArray, CuPtr
using PyDiffEqFlux: PyDiffEqFlux, Place

struct Device <: Place
    ordinal::Int
end

function PyDiffEqFlux.place(::Val{:CUDA}, ordinal::Int)
    CUDA.functional() || throw(ArgumentError("no device: CUDA.jl finds no driver or GPU that it can use"))
    ordinal < CUDA.ndevices() ||
        throw(ArgumentError("no device: CUDA.jl sees $(CUDA.ndevices()) GPUs, and number $ordinal was asked for"))
    return Device(ordinal)
end

# torch and CUDA.jl both use the device's primary context: an address of the one is good for the other.
function PyDiffEqFlux.wrapped(::Device, ::Type{T}, address::Integer, sizes::Dims) where {T}
    return unsafe_wrap(CuArray, CuPtr{T}(UInt(address)), sizes)
end

PyDiffEqFlux.zeroed(::Device, ::Type{T}, sizes::Int...) where {T} = CUDA.zeros(T, sizes...)
PyDiffEqFlux.arrive(place::Device) = (CUDA.device!(place.ordinal); nothing)
PyDiffEqFlux.settle(place::Device) = (CUDA.synchronize(); nothing)

end
