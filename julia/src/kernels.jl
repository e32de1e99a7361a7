"The compiled functions of a right-hand side with states of type `T`, wherever its memory lies."
abstract type AbstractKernels{T} end

"""
    Kernels(T, n, m, np, c, i)

The compiled functions of one right-hand side with `n` states of type `T` and `np` parameters, and the memory that they
work in. It has `m` values: as many as states, but for the condition of an event. `c` and `i` hold its constants: numbers
and integers. Not to be used by two tasks at a time.
"""
mutable struct Kernels{T} <: AbstractKernels{T}
    const n::Int
    const m::Int
    const np::Int
    const c::Vector{T}
    const i::Vector{Int64}
    w::Vector{T}
    # Results that nobody asked for have to go somewhere.
    const gy::Vector{T}
    const gp::Vector{T}
    const gt::Vector{T}
    J::Vector{T}
    const ft::Vector{T}
    f::Ptr{Cvoid}
    vjp::Ptr{Cvoid}
    vjp_y::Ptr{Cvoid}
    jac::Ptr{Cvoid}
    nf::Int
    njac::Int
    # The emitted functions themselves, for numbers that are not plain.
    const emitted::Dict{Symbol, Any}
end

function Kernels(::Type{T}, n::Int, m::Int, np::Int, c::Vector{T}, i::Vector{Int64}) where {T}
    return Kernels{T}(
        n, m, np, c, i, T[], zeros(T, n), zeros(T, np), zeros(T, 1), T[], zeros(T, n),
        C_NULL, C_NULL, C_NULL, C_NULL, 0, 0, Dict{Symbol, Any}()
    )
end

"""
    add!(kernels, name, source, workspace)

Compile one of the functions `f`, `vjp`, `vjp_y`, `jac` from its source.
"""
function add!(k::Kernels{T}, name::Symbol, source::AbstractString, workspace::Int) where {T}
    length(k.w) < workspace && (k.w = zeros(T, workspace))
    k.emitted[name], pointer = compiled(T, name, source, workspace)
    return point!(k, name, pointer)
end

"Let one of the functions be the code at an address."
function point!(k::Kernels{T}, name::Symbol, address) where {T}
    name === :jac && (k.J = zeros(T, k.n^2))
    setfield!(k, name, Ptr{Cvoid}(UInt(address)))
    return nothing
end

const Memory1{T} = StridedVector{T}

function checked(x::Memory1, n::Int)
    length(x) == n && stride(x, 1) == 1 && return x
    throw(DimensionMismatch("expected $n contiguous numbers, got $(length(x)) with stride $(stride(x, 1))"))
end

function evaluate!(out::Memory1{T}, k::Kernels{T}, y::Memory1{T}, p::Memory1{T}, t) where {T}
    checked(out, k.m), checked(y, k.n), checked(p, k.np)
    givenup()
    ticked(t)
    k.nf += 1
    GC.@preserve out k y p ccall(
        k.f, Cvoid, (Float64, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{Int64}, Ptr{T}, Ptr{T}),
        Float64(t), pointer(y), pointer(p), pointer(k.c), pointer(k.i), pointer(k.w), pointer(out)
    )
    return nothing
end

function pull!(
        gy::Memory1{T}, gp::Memory1{T}, gt::Memory1{T}, k::Kernels{T}, v::Memory1{T}, y::Memory1{T}, p::Memory1{T}, t
) where {T}
    checked(gy, k.n), checked(gp, k.np), checked(v, k.m), checked(y, k.n), checked(p, k.np)
    givenup()
    GC.@preserve gy gp gt k v y p ccall(
        k.vjp, Cvoid,
        (Float64, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{Int64}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}),
        Float64(t), pointer(y), pointer(v), pointer(p), pointer(k.c), pointer(k.i), pointer(k.w), pointer(gy), pointer(gp),
        pointer(gt)
    )
    return nothing
end

function pull_state!(gy::Memory1{T}, k::Kernels{T}, v::Memory1{T}, y::Memory1{T}, p::Memory1{T}, t) where {T}
    checked(gy, k.n), checked(v, k.n), checked(y, k.n), checked(p, k.np)
    givenup()
    GC.@preserve gy k v y p ccall(
        k.vjp_y, Cvoid, (Float64, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{Int64}, Ptr{T}, Ptr{T}),
        Float64(t), pointer(y), pointer(v), pointer(p), pointer(k.c), pointer(k.i), pointer(k.w), pointer(gy)
    )
    return nothing
end

function jacobian!(k::Kernels{T}, y::Memory1{T}, p::Memory1{T}, t) where {T}
    checked(y, k.n), checked(p, k.np)
    GC.@preserve k y p ccall(
        k.jac, Cvoid, (Float64, Ptr{T}, Ptr{T}, Ptr{T}, Ptr{Int64}, Ptr{T}, Ptr{T}, Ptr{T}),
        Float64(t), pointer(y), pointer(p), pointer(k.c), pointer(k.i), pointer(k.w), pointer(k.J), pointer(k.ft)
    )
    return nothing
end

# The functions of an ODEFunction, each of a fixed type.

struct RightHandSide{T} <: Function
    kernels::Kernels{T}
end
(r::RightHandSide{T})(du::Memory1{T}, u::Memory1{T}, p::Memory1{T}, t) where {T} = evaluate!(du, r.kernels, u, p, t)

# Numbers that carry derivatives run through the same emitted code, compiled for them when they first come.
function (r::RightHandSide{T})(du::AbstractVector, u::AbstractVector, p::AbstractVector, t) where {T}
    r.kernels.nf += 1
    generic(r.kernels, :f, u, p, t, du)
    return nothing
end

# Zygote follows no writing into memory, and hands over a buffer that takes whole vectors.
function (r::RightHandSide)(du::Zygote.Buffer, u, p, t)
    copyto!(du, returned(r, u, p, t))
    return nothing
end

"The value of a right-hand side, with the traced derivative."
function returned(r::RightHandSide{T}, u, p, t) where {T}
    du = Vector{T}(undef, r.kernels.n)
    r(du, u, p, t)
    return du
end

function ChainRulesCore.rrule(::typeof(returned), r::RightHandSide{T}, u, p, t) where {T}
    function pullback(seed)
        gy, gp, v = Vector{T}(undef, length(u)), Vector{T}(undef, length(p)), convert(Vector{T}, unthunk(seed))
        pull!(gy, gp, r.kernels.gt, r.kernels, v, u, p, t)
        return NoTangent(), NoTangent(), gy, gp, NoTangent()
    end
    return returned(r, u, p, t), pullback
end

"Run an emitted function on numbers of any kind; `outs` are its results."
function generic(k::Kernels{T}, name::Symbol, u, p, t, outs...) where {T}
    givenup()
    haskey(k.emitted, name) ||
        throw(ArgumentError("the right-hand side stays in Python, which takes plain numbers only"))
    w = Vector{Base.promote_op(*, eltype(u), eltype(p), T, typeof(t))}(undef, length(k.w))
    when = t isa AbstractFloat ? T(t) : t
    Base.invokelatest(k.emitted[name], when, map(Shifted, (u, p, k.c, k.i, w, outs...))...)
    return nothing
end

struct PullState{T} <: Function
    kernels::Kernels{T}
end
(r::PullState{T})(Jv, v, u, p, t) where {T} = pull_state!(Jv, r.kernels, v, u, p, t)

struct PullParameters{T} <: Function
    kernels::Kernels{T}
end
(r::PullParameters{T})(Jv, v, u, p, t) where {T} = pull!(r.kernels.gy, Jv, r.kernels.gt, r.kernels, v, u, p, t)

# An adjoint looks at the solution at a time of 64 bits, and a state of 32 bits comes out of that in 64.
const Plain = Union{Float32, Float64}

struct Jacobian{T} <: Function
    kernels::Kernels{T}
end
function (r::Jacobian{T})(J, u::StridedVector{<:Plain}, p::Memory1{T}, t) where {T}
    k = r.kernels
    k.njac += 1
    jacobian!(k, convert(Vector{T}, u), p, t)
    transposed!(J, k.J, k.n)
    return nothing
end
function (r::Jacobian)(J, u::AbstractVector, p::AbstractVector, t)
    k = r.kernels
    k.njac += 1
    flat, ft = similar(J, length(J)), similar(J, k.n)
    generic(k, :jac, u, p, t, flat, ft)
    transposed!(J, flat, k.n)
    return nothing
end

"Emitted code writes by rows."
function transposed!(J, flat, n)
    @inbounds for column in 1:n, row in 1:n

        J[row, column] = flat[(row - 1) * n + column]
    end
    return nothing
end

struct TimeGradient{T} <: Function
    kernels::Kernels{T}
end
function (r::TimeGradient{T})(dT, u::Memory1{T}, p::Memory1{T}, t) where {T}
    jacobian!(r.kernels, u, p, t)
    dT .= r.kernels.ft
    return nothing
end
function (r::TimeGradient)(dT, u::AbstractVector, p::AbstractVector, t)
    k = r.kernels
    ft = similar(dT, k.n)
    generic(k, :jac, u, p, t, similar(dT, k.n^2), ft)
    dT .= ft
    return nothing
end

# SciMLBase asks every function of a problem how many arguments it takes, for each problem anew. Looking through its methods
# takes a quarter of a millisecond, more than a small solve, and longer with every package that has been loaded.
SciMLBase.numargs(::Union{RightHandSide, Jacobian, TimeGradient}) = (4,)
SciMLBase.numargs(::Union{PullState, PullParameters}) = (5,)

"""
    odefunction(kernels)

The right-hand side with its vector-Jacobian products and, where it was compiled, its Jacobian.
"""
function odefunction(k::Kernels)
    # Types are the same with and without a Jacobian only if they are different functions: two compilations.
    k.jac == C_NULL && return ODEFunction{true, SciMLBase.FullSpecialize}(
        RightHandSide(k); vjp = PullState(k), vjp_p = PullParameters(k)
    )
    return ODEFunction{true, SciMLBase.FullSpecialize}(
        RightHandSide(k); vjp = PullState(k), vjp_p = PullParameters(k), jac = Jacobian(k), tgrad = TimeGradient(k),
        # With a prototype the adjoint's Jacobian, too, is made of this one.
        jac_prototype = zeros(eltype(k.gt), k.n, k.n)
    )
end

"""
    plainfunction(kernels; products...)

The right-hand side without its vector-Jacobian products, for algorithms that find them in a way of their own, and for
solvers that run on numbers that carry derivatives.
"""
function plainfunction(k::Kernels; products...)
    k.jac == C_NULL && return ODEFunction{true, SciMLBase.FullSpecialize}(RightHandSide(k); products...)
    return ODEFunction{true, SciMLBase.FullSpecialize}(
        RightHandSide(k); jac = Jacobian(k), tgrad = TimeGradient(k), products...
    )
end
