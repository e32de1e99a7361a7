using JLArrays

# The right-hand side of `runtests.jl` as Python would emit it for arrays.
const ARRAYS = (
    f = """
    Base.@propagate_inbounds function f_0(item_, t, y, p, c, i, w, out)
        out[1 + item_] = item_ == 0 ? ((-p[1]) * y[1]) + (t * y[2]) : (p[2] * (y[1] * y[2]))
        return nothing
    end

    function f(t, y, p, c, i, w, out)
        each!(f_0, 2, t, y, p, c, i, w, out)
        return nothing
    end
    """,
    vjp = """
    Base.@propagate_inbounds function vjp_0(item_, t, y, v, p, c, i, w, gy, gp, gt)
        gy[1] = ((-p[1]) * v[1]) + (p[2] * (y[2] * v[2]))
        gy[2] = (t * v[1]) + (p[2] * (y[1] * v[2]))
        gp[1] = (-y[1]) * v[1]
        gp[2] = (y[1] * y[2]) * v[2]
        gt[1] = y[2] * v[1]
        return nothing
    end

    function vjp(t, y, v, p, c, i, w, gy, gp, gt)
        each!(vjp_0, 1, t, y, v, p, c, i, w, gy, gp, gt)
        return nothing
    end
    """,
    vjp_y = """
    Base.@propagate_inbounds function vjp_y_0(item_, t, y, v, p, c, i, w, gy)
        gy[1] = ((-p[1]) * v[1]) + (p[2] * (y[2] * v[2]))
        gy[2] = (t * v[1]) + (p[2] * (y[1] * v[2]))
        return nothing
    end

    function vjp_y(t, y, v, p, c, i, w, gy)
        each!(vjp_y_0, 1, t, y, v, p, c, i, w, gy)
        return nothing
    end
    """
)

@testset "arrays that lie elsewhere" begin
    place = P.HELD[P.bridge_place("JLArrays", 0)]
    @test_throws "no device: the Julia package NoSuchArrays is not installed" P.bridge_place("NoSuchArrays", 0)
    k = P.HELD[P.bridge_array_kernels(P.hold(place), "float64", 2, 2, 2, 0, 0)]
    plain = P.Kernels(Float64, 2, 2, 2, Float64[], Int64[])
    for (name, source) in ((:f, F), (:vjp, VJP), (:vjp_y, VJP_Y))
        P.add!(k, name, ARRAYS[name], 0)
        P.add!(plain, name, source, 0)
    end

    @testset "memory at an address is not copied" begin
        x = [1.0, 2.0, 3.0, 4.0]
        GC.@preserve x begin
            seen = P.memory(k, UInt(pointer(x)), 2, 2)
            @test seen isa JLMatrix{Float64}
            @test_throws "Scalar indexing is disallowed" seen[1, 1]
            seen .*= 2
        end
        @test x == [2.0, 4.0, 6.0, 8.0]
        @test P.memory(k, 0, 0) isa JLVector{Float64}
    end

    @testset "products of matrices" begin
        multiply! = Base.get_extension(P, :PyDiffEqFluxGPUArraysExt).multiply!
        A, B = reshape(collect(1.0:6.0), 2, 3), reshape(collect(1.0:12.0), 3, 4)
        rows(M) = vec(permutedims(M))
        for (flip_left, flip_right) in Iterators.product((false, true), (false, true))
            left = jl([0.0; flip_left ? vec(A) : rows(A)])
            right = jl([0.0; 0.0; flip_right ? vec(B) : rows(B)])
            out = jl(zeros(9))
            multiply!(out, 1, left, 1, flip_left, right, 2, flip_right, 2, 3, 4)
            @test Array(out) ≈ [0.0; rows(A * B)]
        end
    end

    @testset "the same as in plain memory: $name" for name in ("GaussAdjoint", "InterpolatingAdjoint")
        alg, sensealg = P.algorithm("Tsit5"), P.sensitivity(name)
        u0, p, saves, seeds = [0.8, 1.04], [0.7, 0.3], [0.5, 1.0], [1.0 2.0; -1.0 1.0]
        options = (; keep = "end", dense = true, reltol = 1.0e-9, abstol = 1.0e-9, maxiters = 1000, tstops = Float64[])
        function solved(kernels, move)
            run = P.forward(kernels, alg, move(u0), move(p), 0.0, 1.0, saves; options...)
            to_u0, to_p = P.gradient(run, alg, sensealg, move(seeds); reltol = 1.0e-9, abstol = 1.0e-9)
            return run.us, to_u0, to_p
        end
        for (found, expected) in zip(solved(k, jl), solved(plain, identity))
            @test found isa JLArray
            @test Array(found) ≈ expected rtol = 1.0e-12
        end
    end
end
