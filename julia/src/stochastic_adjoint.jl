# SciMLSensitivity's stochastic adjoint, with the traced vector-Jacobian products in the place of its own.
#
# It is solved in Stratonovich's form, where reversing time changes nothing but the direction: the drift that is handed to
# it is that of this form. Entry i of a diffusion may depend on all states (`noisemixing`).

const Backsolve{F} = SciMLSensitivity.ODEBacksolveSensitivityFunction{<:Any, <:Any, <:Any, <:Any, F}

function SciMLSensitivity.vecjacobian!(
        dλ, y, λ, p, t, S::Backsolve{<:SciMLBase.SDEFunction{<:Any, <:Any, <:Drift}};
        dgrad = nothing, dy = nothing, W = nothing
)
    f = S.f.f
    gy, gp = pulled(f, λ, y, p, t)
    dλ .= gy
    dgrad === nothing || (dgrad .= gp)
    dy === nothing || f(dy, y, p, t)
    return nothing
end

function SciMLSensitivity._jacNoise!(
        λ, y, p, t, S::Backsolve{<:SciMLBase.ODEFunction{<:Any, <:Any, <:Diffusion}}, ::Bool, dgrad, dλ, dy
)
    g = S.f.f
    seed = zeros(eltype(g.values), sizes(g))
    for j in axes(dλ, 2)
        fill!(seed, 0)
        seed isa AbstractVector ? (seed[j] = λ[j]) : (seed[:, j] .= λ)
        gy, gp = pulled(g, seed, y, p, t)
        dλ[:, j] .= gy
        dgrad === nothing || (dgrad[:, j] .= gp)
    end
    if dy !== nothing
        g(seed, y, p, t)
        dy .= seed
    end
    return nothing
end

# SciMLSensitivity copies the solution that it starts from; compiled code is not to be copied.
Base.deepcopy_internal(k::Kernels, ::IdDict) = k

"""
    backsolved(run, e, p, seeds; checkpointing)

The gradient with respect to the initial state and to `p`, the parameters of the same equation `e` in Stratonovich's form.
"""
function backsolved(
        run::StochasticRun{T}, e::Stochastic{T}, p::Vector{T}, seeds::Matrix{T}; checkpointing::Bool) where {T}
    alg, n = StochasticDiffEq.EulerHeun(), length(run.u0)
    prob = problem(e, run.u0, (run.path.ts[1], run.path.ts[end]), p, noise(run.path); inplace = true)
    solution = solve(
        prob, alg; saveat = run.ts, save_everystep = false, save_start = true, save_end = true, save_noise = true,
        verbose = SILENT, along(run.path)...
    )
    sensealg = SciMLSensitivity.BacksolveAdjoint(; autojacvec = true, checkpointing, noisemixing = true)
    adjoint = SciMLSensitivity.SDEAdjointProblem(solution, sensealg, alg, run.ts, Seeds(seeds))
    found = solve(
        adjoint, alg; adaptive = false, dt = -maximum(diff(run.path.ts)), tstops = reverse(run.path.ts),
        save_everystep = false, save_start = false, verbose = SILENT
    )
    z = found.u[end]
    return z[1:n], z[(n + 1):(n + length(p))]
end

"Write the gradient by the stochastic adjoint of an equation in Stratonovich's form."
function bridge_stochastic_backsolve(
        run::Int, equation::Int, p::Integer, seeds::Integer, du0::Integer, dp::Integer, checkpointing::Bool
)
    r, e = HELD[run], HELD[equation]
    T, np = eltype(r.us), e.drift.kernels.np + e.diffusion.kernels.np
    to_u0, to_p = backsolved(r, e, copy(array(T, p, np)), copy(array(T, seeds, size(r.us)...)); checkpointing)
    copyto!(array(T, du0, length(to_u0)), to_u0)
    copyto!(array(T, dp, np), to_p)
    return nothing
end
