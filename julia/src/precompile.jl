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
            k.f = @cfunction(toy_f, Cvoid, (Float64, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{Int64}, Ptr{$T}, Ptr{$T}))
            k.vjp = @cfunction(toy_vjp, Cvoid,
                (Float64, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{Int64}, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{$T}))
            k.vjp_y = @cfunction(toy_vjp_y, Cvoid,
                (Float64, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{Int64}, Ptr{$T}, Ptr{$T}))
            if jac
                k.J = zeros($T, 4)
                k.jac = @cfunction(toy_jac, Cvoid,
                    (Float64, Ptr{$T}, Ptr{$T}, Ptr{$T}, Ptr{Int64}, Ptr{$T}, Ptr{$T}, Ptr{$T}))
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

address(x::Array) = Int64(UInt(pointer(x)))

"Run one solve and one gradient of the toy, the way that `pydiffeqflux` does."
function exercise(::Type{T}, solver::String, sensealg::String, options::String = "") where {T}
    alg, sense = bridge_algorithm(solver), bridge_sensitivity(sensealg, options)
    kernels = hold(toy(T; jac = bridge_kind(alg)[1]))
    y0, p, us, last, seeds, du0, dp = ones(T, 2), T[0.5], zeros(T, 6), zeros(T, 2), ones(T, 6), zeros(T, 2), zeros(T, 1)
    saves, rtol, atol = [0.0, 0.5, 1.0], [1.0e-3], [1.0e-6]
    GC.@preserve y0 p us last seeds du0 dp saves rtol atol begin
        evaluated(Evaluation(0, kernels, address(y0), address(p), 0, 0, address(last), 0.0))
        ask(wanted,
            dense) = Ask(
            0, kernels, alg, wanted, 0, 0, 0, 0, dense, 1000, 3, address(saves), 0, 0, 1, address(rtol), address(atol),
            address(y0), address(p), 0, 0, address(us), address(last), 0.0, 1.0
        )
        foreach(dense -> solved(ask(0, dense)), 0:1)
        came = solved(ask(sense, 0))
        pulled(Pull(0, came.run, alg, sense, address(seeds), address(du0), address(dp), 0, 0, rtol[1], atol[1]))
    end
    empty!(HELD)
    return nothing
end

# How Python writes the options of the continuous adjoints.
const CHECKPOINTING = "autojacvec = \"traced\", checkpointing = false,"
const TOLERANCES = "autojacvec = \"traced\", abstol = 1.0e-6, reltol = 0.001,"

@setup_workload begin
    @compile_workload begin
        bridge_entries()
        for T in (Float32, Float64)
            for name in ("GaussAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint")
                exercise(T, "Tsit5", name, CHECKPOINTING)
            end
            exercise(T, "Tsit5", "QuadratureAdjoint", TOLERANCES)
        end
        exercise(Float32, "Rodas5P", "GaussAdjoint", CHECKPOINTING)
        exercise(Float64, "Tsit5", "GaussKronrodAdjoint", CHECKPOINTING)
        exercise(Float64, "Tsit5", "ForwardSensitivity")
        # LLVM takes a minute for one step of KenCarp4's: here once, or in every session that asks for it.
        exercise(Float64, "KenCarp4", "GaussAdjoint", CHECKPOINTING)
        for solver in ("Rodas5P", "Rosenbrock23", "FBDF", "AutoTsit5(Rosenbrock23())")
            exercise(Float64, solver, "GaussAdjoint", CHECKPOINTING)
            exercise(Float64, solver, "InterpolatingAdjoint", CHECKPOINTING)
            exercise(Float64, solver, "QuadratureAdjoint", TOLERANCES)
        end
    end
end
