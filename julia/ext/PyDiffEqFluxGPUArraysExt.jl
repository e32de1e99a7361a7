"""
Right-hand sides on arrays whose elements cannot be read one by one. The emitted code (`emit_arrays.py`) launches a
kernel for each of its statements, by KernelAbstractions; what kind of array it is, is a `Place`'s business.
"""
module PyDiffEqFluxGPUArraysExt

using GPUArrays: AnyGPUVector
using KernelAbstractions: KernelAbstractions, @index, @kernel
using LinearAlgebra: LinearAlgebra, mul!
using PyDiffEqFlux: PyDiffEqFlux, AbstractKernels, Place
using SciMLBase: SciMLBase, ODEFunction

# -- the words of emitted code that the CPU's has not --------------------------------------------------------------

@kernel inbounds=true function one_item!(body, arguments)
    item = @index(Global, Linear)
    body(item - 1, arguments...)
end

"Call `body` for each of `n` work items, counted from zero."
function each!(body, n::Int, arguments...)
    n == 0 && return nothing
    backend = KernelAbstractions.get_backend(first(a for a in arguments if a isa AbstractArray))
    one_item!(backend)(body, arguments; ndrange = n)
    return nothing
end

"""
    multiply!(out, o, left, l, flip_left, right, r, flip_right, rows, inner, columns)

`out = left * right`, row-major matrices in vectors, which begin after `o`, `l` and `r` elements and have no gaps. One
that is flipped lies there column after column.
"""
function multiply!(
        out, o::Int, left, l::Int, flip_left::Bool, right, r::Int, flip_right::Bool, rows::Int, inner::Int, columns::Int
)
    # Julia counts by columns, where a row-major matrix is its own transpose: out' = right' * left'.
    mul!(
        matrix(out, o, columns, rows), turned(right, r, flip_right, columns, inner),
        turned(left, l, flip_left, inner, rows)
    )
    return nothing
end

matrix(x, first::Int, rows::Int, columns::Int) = reshape(view(x, (first + 1):(first + rows * columns)), rows, columns)
function turned(x, first::Int, flip::Bool, rows::Int, columns::Int)
    flip ? LinearAlgebra.transpose(matrix(x, first, columns, rows)) : matrix(x, first, rows, columns)
end

# -- compiled right-hand sides -------------------------------------------------------------------------------------

"As `Kernels`, with memory at a `place`, and functions that are called through dispatch."
mutable struct ArrayKernels{T, P <: Place, V <: AbstractVector{T}, I <: AbstractVector{Int64}} <: AbstractKernels{T}
    const place::P
    const n::Int
    const m::Int
    const np::Int
    const c::V
    const i::I
    w::V
    const gy::V
    const gp::V
    const gt::V
    J::V
    const ft::V
    nf::Int
    njac::Int
    const emitted::Dict{Symbol, Any}
end

function PyDiffEqFlux.arraykernels(place::Place, ::Type{T}, n::Int, m::Int, np::Int, nc::Int, ni::Int) where {T}
    PyDiffEqFlux.arrive(place)
    room(size) = PyDiffEqFlux.zeroed(place, T, size)
    return ArrayKernels(
        place, n, m, np, room(nc), PyDiffEqFlux.zeroed(place, Int64, ni), room(0), room(n), room(np), room(1), room(0),
        room(n), 0, 0, Dict{Symbol, Any}()
    )
end

const COMPILED = Dict{Tuple{DataType, Symbol, String}, Any}()

function PyDiffEqFlux.add!(k::ArrayKernels{T}, name::Symbol, source::AbstractString, workspace::Int) where {T}
    PyDiffEqFlux.arrive(k)
    length(k.w) < workspace && (k.w = PyDiffEqFlux.zeroed(k.place, T, workspace))
    name === :jac && (k.J = PyDiffEqFlux.zeroed(k.place, T, k.n^2))
    k.emitted[name] = get!(COMPILED, (T, name, String(source))) do
        home = PyDiffEqFlux.home(T)
        for word in (each!, multiply!)
            Core.eval(home, :(const $(nameof(word)) = $word))
        end
        include_string(home, source, string(name, ".jl"))
        Core.eval(home, name)
    end
    return nothing
end

PyDiffEqFlux.memory(k::ArrayKernels{T}, address::Integer, sizes::Int...) where {T} = at(k.place, T, address, sizes)
PyDiffEqFlux.integers(k::ArrayKernels, address::Integer, sizes::Int...) = at(k.place, Int64, address, sizes)
PyDiffEqFlux.arrive(k::ArrayKernels) = PyDiffEqFlux.arrive(k.place)
PyDiffEqFlux.settle(k::ArrayKernels) = PyDiffEqFlux.settle(k.place)
PyDiffEqFlux.alongside(k::ArrayKernels, x::Vector) = copyto!(PyDiffEqFlux.zeroed(k.place, eltype(x), length(x)), x)

# Nothing has no address.
function at(place::Place, ::Type{T}, address, sizes) where {T}
    prod(sizes) == 0 ?
    PyDiffEqFlux.zeroed(place, T, sizes...) :
    PyDiffEqFlux.wrapped(place, T, address, sizes)
end

function called(k::ArrayKernels{T}, name::Symbol, t, arguments...) where {T}
    PyDiffEqFlux.givenup()
    Base.invokelatest(k.emitted[name], T(t), arguments...)
    return nothing
end

function PyDiffEqFlux.evaluate!(out, k::ArrayKernels, y, p, t)
    PyDiffEqFlux.ticked(t)
    k.nf += 1
    called(k, :f, t, y, p, k.c, k.i, k.w, out)
end

jacobian!(k::ArrayKernels, y, p, t) = called(k, :jac, t, y, p, k.c, k.i, k.w, k.J, k.ft)

# The functions of an ODEFunction. As for the CPU, no type depends on the model.

struct RightHandSide{K <: ArrayKernels} <: Function
    kernels::K
end
(r::RightHandSide)(du, u, p, t) = PyDiffEqFlux.evaluate!(du, r.kernels, u, p, t)

struct PullState{K <: ArrayKernels} <: Function
    kernels::K
end
(r::PullState)(Jv, v, u, p, t) = (k = r.kernels; called(k, :vjp_y, t, u, v, p, k.c, k.i, k.w, Jv))

struct PullParameters{K <: ArrayKernels} <: Function
    kernels::K
end
(r::PullParameters)(Jv, v, u, p, t) = (k = r.kernels; called(k, :vjp, t, u, v, p, k.c, k.i, k.w, k.gy, Jv, k.gt))

struct Jacobian{K <: ArrayKernels} <: Function
    kernels::K
end
function (r::Jacobian)(J, u, p, t)
    k = r.kernels
    k.njac += 1
    jacobian!(k, u, p, t)
    J .= LinearAlgebra.transpose(reshape(k.J, k.n, k.n))
    return nothing
end

struct TimeGradient{K <: ArrayKernels} <: Function
    kernels::K
end
function (r::TimeGradient)(dT, u, p, t)
    jacobian!(r.kernels, u, p, t)
    dT .= r.kernels.ft
    return nothing
end

SciMLBase.numargs(::Union{RightHandSide, Jacobian, TimeGradient}) = (4,)
SciMLBase.numargs(::Union{PullState, PullParameters}) = (5,)

function PyDiffEqFlux.odefunction(k::ArrayKernels{T}) where {T}
    products = (; vjp = PullState(k), vjp_p = PullParameters(k))
    haskey(k.emitted, :jac) || return ODEFunction{true, SciMLBase.FullSpecialize}(RightHandSide(k); products...)
    return ODEFunction{true, SciMLBase.FullSpecialize}(
        RightHandSide(k); products..., jac = Jacobian(k), tgrad = TimeGradient(k),
        jac_prototype = PyDiffEqFlux.zeroed(k.place, T, k.n, k.n)
    )
end

# Stiff solvers: their matrices are factorised on the CPU (see `lu.jl`), to which vectors go and come back.
function PyDiffEqFlux.substitute!(x::AnyGPUVector, f::PyDiffEqFlux.Factors, b::AnyGPUVector)
    known = Array(b)
    copyto!(x, PyDiffEqFlux.substitute!(known, f, known))
    return x
end

end
