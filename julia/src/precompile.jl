# Solver and adjoint code depends on the types above only, never on the model: what is compiled here, for a toy, is what
# every model uses.

for T in (Float32, Float64)
    @eval begin
        toy_f(t::Float64, y::Ptr{$T}, p, c, i, w, out) = (decay!(Flat(out), Flat(y), Flat(p)); nothing)
        function toy_vjp(t::Float64, y::Ptr{$T}, v, p, c, i, w, gy, gp, gt)
            decay!(Flat(gy), Flat(v), Flat(p))
            unsafe_store!(gp, -unsafe_load(v, 1) * unsafe_load(y, 1) - unsafe_load(v, 2) * unsafe_load(y, 2))
            unsafe_store!(gt, zero($T))
            return nothing
        end
        toy_vjp_y(t::Float64, y, v::Ptr{$T}, p, c, i, w, gy) = (decay!(Flat(gy), Flat(v), Flat(p)); nothing)
        function toy_jac(t::Float64, y::Ptr{$T}, p, c, i, w, J, ft)
            for k in 1:4
                unsafe_store!(J, k in (1, 4) ? -unsafe_load(p, 1) : zero($T), k)
            end
            unsafe_store!(ft, zero($T), 1)
            unsafe_store!(ft, zero($T), 2)
            return nothing
        end
        function toy(::Type{$T}; jac::Bool)
            k = Kernels($T, 2, 2, 1, $T[], Int64[])
            P = Ptr{$T}
            k.f = @cfunction(toy_f, Cvoid, (Float64, P, P, P, Ptr{Int64}, P, P))
            k.vjp = @cfunction(toy_vjp, Cvoid, (Float64, P, P, P, P, Ptr{Int64}, P, P, P, P))
            k.vjp_y = @cfunction(toy_vjp_y, Cvoid, (Float64, P, P, P, P, Ptr{Int64}, P, P))
            if jac
                k.J = zeros($T, 4)
                k.jac = @cfunction(toy_jac, Cvoid, (Float64, P, P, P, Ptr{Int64}, P, P, P))
            end
            return k
        end
    end
end

function decay!(out, y, p)
    for k in 0:1
        out[k] = -p[0] * y[k]
    end
    return nothing
end

"Run one solve and one gradient of the toy, the way that `pydiffeqflux` does."
function exercise(::Type{T}, solver::String, sensealg::String) where {T}
    alg = algorithm(solver)
    k = toy(T; jac = needsjacobian(alg))
    method = sensitivity(sensealg)
    limits = (; reltol = 1.0e-3, abstol = 1.0e-6)
    run = forward(
        k, alg, ones(T, 2), T[0.5], 0.0, 1.0, [0.0, 0.5, 1.0];
        keep = "steps", dense = needsdense(method), limits..., maxiters = 1000, tstops = Float64[]
    )
    outcome(run)
    return gradient(run, alg, method, ones(T, 2, 3); limits...)
end

@setup_workload begin
    @compile_workload begin
        for T in (Float32, Float64)
            exercise(T, "Tsit5", "GaussAdjoint")
        end
        exercise(Float64, "Tsit5", "InterpolatingAdjoint")
        exercise(Float64, "Tsit5", "BacksolveAdjoint")
        exercise(Float64, "Tsit5", "QuadratureAdjoint")
        exercise(Float64, "Rodas5P", "GaussAdjoint")
    end
end
