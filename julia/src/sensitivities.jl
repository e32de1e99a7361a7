# The sensitivity equations, with the traced products. SciMLSensitivity solves them for parameters only: the initial state
# joins the parameters as numbers that nothing depends on, and whose sensitivities start at one instead of zero.

"""
    Rows(kernels)

The Jacobians with respect to the state and to the parameters, row by row by vector-Jacobian products.
"""
struct Rows{T}
    kernels::Kernels{T}
    v::Vector{T}
    gy::Vector{T}
    byparameter::Matrix{T}
end
Rows(k::Kernels{T}) where {T} = Rows(k, zeros(T, k.n), zeros(T, k.n), zeros(T, k.np, k.n))

struct WideRightHandSide{T} <: Function
    kernels::Kernels{T}
end
(r::WideRightHandSide)(du, u, p, t) = evaluate!(du, r.kernels, u, view(p, 1:r.kernels.np), t)

struct StateJacobian{T} <: Function
    rows::Rows{T}
end
function (r::StateJacobian)(J, u, p, t)
    rows, k = r.rows, r.rows.kernels
    for i in 1:k.n
        fill!(rows.v, 0)
        rows.v[i] = 1
        pull!(rows.gy, view(rows.byparameter, :, i), k.gt, k, rows.v, u, view(p, 1:k.np), t)
        J[i, :] .= rows.gy
    end
    return nothing
end

# Asked for right after the other, at the same point: what that one found is still there.
struct ParameterJacobian{T} <: Function
    rows::Rows{T}
end
function (r::ParameterJacobian)(J, u, p, t)
    np = r.rows.kernels.np
    J[:, 1:np] .= transpose(r.rows.byparameter)
    J[:, (np + 1):end] .= 0
    return nothing
end

SciMLBase.numargs(::Union{WideRightHandSide, StateJacobian, ParameterJacobian}) = (4,)

function gradient(
        run::Run{T}, alg, sensealg::SciMLSensitivity.ForwardSensitivity, seeds::Matrix{T}; reltol, abstol
) where {T}
    k, u0 = run.kernels, initial(run)
    rows = Rows(k)
    f = ODEFunction{true, SciMLBase.FullSpecialize}(
        WideRightHandSide(k); jac = StateJacobian(rows), paramjac = ParameterJacobian(rows)
    )
    problem = SciMLSensitivity.ODEForwardSensitivityProblem(f, copy(u0), ended(run), [run.p; u0]; sensealg)
    for i in 1:k.n
        problem.u0[k.n * (1 + k.np) + (i - 1) * k.n + i] = 1
    end
    options = again_saving(run)
    solution = solve(
        problem, backward(alg); options..., reltol = widened(options.reltol, problem.u0),
        abstol = widened(options.abstol, problem.u0)
    )
    repeated(solution)
    found = zeros(T, k.np + k.n)
    for (i, u) in enumerate(solution.u)
        LinearAlgebra.mul!(
            found, transpose(reshape(view(u, (k.n + 1):length(u)), k.n, :)), view(seeds, :, i), true, true)
    end
    return found[(k.np + 1):end], found[1:k.np]
end

"A tolerance for each state, and the tightest of them for the sensitivities."
widened(tolerance::Real, u0) = tolerance
widened(tolerance::AbstractVector, u0) = [tolerance; fill(minimum(tolerance), length(u0) - length(tolerance))]
