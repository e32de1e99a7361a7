"""
    Flat(pointer)

Flat memory of somebody else, indexed from zero and unchecked. The emitted functions work on it.
"""
struct Flat{T}
    pointer::Ptr{T}
end

@inline Base.getindex(a::Flat, k::Int) = unsafe_load(a.pointer, k + 1)
@inline Base.setindex!(a::Flat{T}, x, k::Int) where {T} = unsafe_store!(a.pointer, convert(T, x), k + 1)

"""
    Shifted(vector)

A vector indexed from zero: what takes the place of [`Flat`](@ref) where elements are not plain numbers (dual numbers).
"""
struct Shifted{A <: AbstractVector}
    data::A
end

@inline Base.getindex(a::Shifted, k::Int) = @inbounds a.data[k + 1]
@inline Base.setindex!(a::Shifted, x, k::Int) = @inbounds a.data[k + 1] = x

"""
    product!(out, o, left, l, lr, lc, right, r, rr, rc, rows, inner, columns)

`out = left * right` by BLAS. All three are row-major matrices in flat memory that begin at the offsets `o`, `l` and `r`;
`lr, lc` and `rr, rc` are the distances from one row, and one column, to the next. `out` is contiguous; of each pair one
is 1.
"""
function product!(
        out::Flat{T}, o::Int, left::Flat{T}, l::Int, lr::Int, lc::Int,
        right::Flat{T}, r::Int, rr::Int, rc::Int, rows::Int, inner::Int, columns::Int
) where {T <: Union{Float32, Float64}}
    # BLAS counts by columns: it computes out' = right' * left', where a row-major matrix is its own transpose.
    flip_left, flip_right = lc != 1, rc != 1
    at(a, k) = a.pointer + k * sizeof(T)
    gemm!(
        flip_right, flip_left, columns, rows, inner, at(right, r), flip_right ? rc : rr,
        at(left, l), flip_left ? lc : lr, at(out, o), columns
    )
    return nothing
end

# Emitted code is generic: what is not plain memory is multiplied by hand.
function product!(out, o, left, l, lr, lc, right, r, rr, rc, rows, inner, columns)
    for i in 0:(rows - 1), j in 0:(columns - 1)

        out[o + i * columns + j] = sum(left[l + i * lr + k * lc] * right[r + k * rr + j * rc] for k in 0:(inner - 1))
    end
    return nothing
end

for (gemm, T) in ((:dgemm_, Float64), (:sgemm_, Float32))
    @eval function gemm!(
            flip_a::Bool, flip_b::Bool, m::Int, n::Int, k::Int, a::Ptr{$T}, lda::Int, b::Ptr{$T}, ldb::Int, c::Ptr{$T}, ldc::Int
    )
        ccall(
            (BLAS.@blasfunc($gemm), BLAS.libblastrampoline), Cvoid,
            (
                Ref{UInt8}, Ref{UInt8}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{BLAS.BlasInt}, Ref{$T}, Ptr{$T},
                Ref{BLAS.BlasInt}, Ptr{$T}, Ref{BLAS.BlasInt}, Ref{$T}, Ptr{$T}, Ref{BLAS.BlasInt}, Clong, Clong
            ),
            flip_a ? 'T' : 'N', flip_b ? 'T' : 'N', m, n, k, one($T), a, max(lda, 1), b, max(ldb, 1), zero($T), c, ldc, 1, 1
        )
        return nothing
    end
end
