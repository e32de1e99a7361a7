# Products of the parameters out of the emitted code, for algorithms that integrate these. SciMLSensitivity has none of its
# own by dual numbers and by Tracker (its gradient is then zero, or an error), and by ReverseDiff only one tape, recorded at
# a state of zeros: a function that branches on its state would stay on one side for good. So they are handed over.

"The algorithms whose gradient of the parameters is an integral along the adjoint."
const Integrals = Union{
    SciMLSensitivity.QuadratureAdjoint, SciMLSensitivity.GaussAdjoint, SciMLSensitivity.GaussKronrodAdjoint
}

"The product of `v` with the derivative with respect to the parameters; `How` is the name of the way to it."
struct DerivedProduct{How, T} <: Function
    kernels::Kernels{T}
end

SciMLBase.numargs(::DerivedProduct) = (5,)

"What is to be differentiated: `v` times the right-hand side, as a function of the parameters."
function weighing(k::Kernels, v, u, t)
    return function (p)
        # Entries of an array that a tape follows cannot be set, those of an array of such numbers can.
        du = Vector{eltype(p)}(undef, k.n)
        RightHandSide(k)(du, u, p, t)
        return sum(v[i] * du[i] for i in eachindex(du))
    end
end

function (r::DerivedProduct{:forwarddiff})(out, v, u, p, t)
    isempty(p) && return nothing
    f = weighing(r.kernels, v, u, t)
    ForwardDiff.gradient!(out, f, p, ForwardDiff.GradientConfig(f, p, ForwardDiff.Chunk{min(CHUNK, length(p))}()))
    return nothing
end

function (r::DerivedProduct{:reversediff})(out, v, u, p, t)
    isempty(p) || ReverseDiff.gradient!(out, weighing(r.kernels, v, u, t), p)
    return nothing
end

function (r::DerivedProduct{:tracker})(out, v, u, p, t)
    isempty(p) || copyto!(out, Tracker.data(only(Tracker.gradient(weighing(r.kernels, v, u, t), p))))
    return nothing
end

"The right-hand side as an algorithm wants it that finds its products in it."
function differentiable(k::Kernels{T}, sensealg::Untraced) where {T}
    how = Symbol(sensealg.products)
    sensealg.algorithm isa Integrals && how in (:forwarddiff, :reversediff, :tracker) || return plainfunction(k)
    return plainfunction(k; vjp_p = DerivedProduct{how, T}(k))
end
