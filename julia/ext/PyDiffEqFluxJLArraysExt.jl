"""
The arrays of JLArrays, which refuse what a GPU's refuse and lie in the CPU's memory: by them the code for arrays is run
where there is no GPU.
"""
module PyDiffEqFluxJLArraysExt

using GPUArrays: DataRef
using JLArrays: JLArray
using PyDiffEqFlux: PyDiffEqFlux, Place

struct Reference <: Place end

PyDiffEqFlux.place(::Val{:JLArrays}, ordinal::Int) = Reference()

function PyDiffEqFlux.wrapped(::Reference, ::Type{T}, address::Integer, sizes::Dims{N}) where {T, N}
    bytes = unsafe_wrap(Array, Ptr{UInt8}(UInt(address)), prod(sizes) * sizeof(T))
    return JLArray{T, N}(DataRef(Returns(nothing), bytes), sizes)
end

PyDiffEqFlux.zeroed(::Reference, ::Type{T}, sizes::Int...) where {T} = fill!(JLArray{T}(undef, sizes), zero(T))

end
