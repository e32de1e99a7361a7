# Stiff solvers factorise a matrix in every step and solve with it in every stage. For the small dense ones that there mostly
# are, calls of LAPACK, and LinearSolve's own choice between its methods, cost more than the arithmetic.

# The solvers' own copy of it.
const LinearSolve = parentmodule(OrdinaryDiffEq.Rodas5P).LinearSolve

"LU with partial pivoting: by plain loops up to `BY_LOOPS` equations, by LAPACK beyond."
struct DenseLU <: LinearSolve.AbstractDenseFactorization end

const BY_LOOPS = 64

"Both triangles in one matrix, and the row that was swapped with each, as LAPACK has them."
struct Factors{T}
    lu::Matrix{T}
    pivots::Vector{BLAS.BlasInt}
end

function LinearSolve.init_cacheval(
        ::DenseLU, A, b, u, Pl, Pr, maxiters::Int, abstol, reltol, verbose::Union{LinearSolve.LinearVerbosity, Bool},
        assumptions::LinearSolve.OperatorAssumptions
)
    matrix = convert(AbstractMatrix, A)
    return Factors(Matrix{eltype(matrix)}(undef, size(matrix)...), Vector{BLAS.BlasInt}(undef, size(matrix, 1)))
end

function SciMLBase.solve!(cache::LinearSolve.LinearCache, alg::DenseLU; kwargs...)
    retcode = SciMLBase.ReturnCode.Success
    if cache.isfresh
        factorise!(cache.cacheval, convert(AbstractMatrix, cache.A)) || (retcode = SciMLBase.ReturnCode.Failure)
        cache.isfresh = false
    end
    retcode == SciMLBase.ReturnCode.Success && substitute!(cache.u, cache.cacheval, cache.b)
    return SciMLBase.build_linear_solution(alg, cache.u, nothing, cache; retcode)
end

"Whether the matrix has an inverse."
function factorise!(f::Factors{T}, A::AbstractMatrix) where {T}
    lu, n = copyto!(f.lu, A), size(A, 1)
    if n > BY_LOOPS && T <: LinearAlgebra.BlasFloat
        return last(LinearAlgebra.LAPACK.getrf!(lu, f.pivots; check = false)) == 0
    end
    @inbounds for k in 1:n
        pivot, most = k, abs(lu[k, k])
        for i in (k + 1):n
            abs(lu[i, k]) > most && ((pivot, most) = (i, abs(lu[i, k])))
        end
        f.pivots[k] = pivot
        iszero(most) && return false
        if pivot != k
            for j in 1:n
                lu[k, j], lu[pivot, j] = lu[pivot, j], lu[k, j]
            end
        end
        scale = inv(lu[k, k])
        for i in (k + 1):n
            lu[i, k] *= scale
        end
        for j in (k + 1):n
            above = lu[k, j]
            @simd ivdep for i in (k + 1):n
                lu[i, j] -= lu[i, k] * above
            end
        end
    end
    return true
end

function substitute!(x::AbstractVector, f::Factors, b::AbstractVector)
    lu, n = f.lu, length(x)
    x === b || copyto!(x, b)
    @inbounds for k in 1:n
        pivot = f.pivots[k]
        pivot == k || ((x[k], x[pivot]) = (x[pivot], x[k]))
    end
    @inbounds for k in 1:n
        known = x[k]
        @simd ivdep for i in (k + 1):n
            x[i] -= lu[i, k] * known
        end
    end
    @inbounds for k in n:-1:1
        known = x[k] /= lu[k, k]
        @simd ivdep for i in 1:(k - 1)
            x[i] -= lu[i, k] * known
        end
    end
    return x
end

const Implicit = Union{
    Solvers.OrdinaryDiffEqRosenbrockAlgorithm, Solvers.OrdinaryDiffEqRosenbrockAdaptiveAlgorithm,
    Solvers.OrdinaryDiffEqNewtonAlgorithm, Solvers.OrdinaryDiffEqNewtonAdaptiveAlgorithm
}

"The solver, with this factorisation unless it was told another way to solve linear equations."
factorising(alg) = alg
function factorising(alg::Implicit)
    hasproperty(alg, :linsolve) && alg.linsolve === nothing ? SciMLBase.remake(alg; linsolve = DenseLU()) : alg
end
function factorising(alg::Solvers.CompositeAlgorithm)
    return Solvers.CompositeAlgorithm(map(factorising, alg.algs), alg.choice_function)
end
