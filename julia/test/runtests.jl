using PyDiffEqFlux
using ForwardDiff
using LinearAlgebra
using Random
using SciMLBase
using Test
using Zygote

const P = PyDiffEqFlux

# A right-hand side as Python would emit it: u' = [-p0 u0 + t u1, p1 u0 u1].
const F = """
function f(t, y, p, c, i, w, out)
    out[0] = ((-p[0]) * y[0]) + (t * y[1])
    out[1] = (p[1] * (y[0] * y[1]))
    return nothing
end
"""
const VJP = """
function vjp(t, y, v, p, c, i, w, gy, gp, gt)
    gy[0] = ((-p[0]) * v[0]) + (p[1] * (y[1] * v[1]))
    gy[1] = (t * v[0]) + (p[1] * (y[0] * v[1]))
    gp[0] = (-y[0]) * v[0]
    gp[1] = (y[0] * y[1]) * v[1]
    gt[0] = y[1] * v[0]
    return nothing
end
"""
const VJP_Y = """
function vjp_y(t, y, v, p, c, i, w, gy)
    gy[0] = ((-p[0]) * v[0]) + (p[1] * (y[1] * v[1]))
    gy[1] = (t * v[0]) + (p[1] * (y[0] * v[1]))
    return nothing
end
"""
const JAC = """
function jac(t, y, p, c, i, w, J, ft)
    J[0] = -p[0]
    J[1] = t
    J[2] = p[1] * y[1]
    J[3] = p[1] * y[0]
    ft[0] = y[1]
    ft[1] = T(0.0)
    return nothing
end
"""

function kernels(::Type{T}) where {T}
    k = P.Kernels(T, 2, 2, 2, T[], Int64[])
    for (name, source) in ((:f, F), (:vjp, VJP), (:vjp_y, VJP_Y), (:jac, JAC))
        P.add!(k, name, source, 0)
    end
    return k
end

f(u, p, t) = [-p[1] * u[1] + t * u[2], p[2] * u[1] * u[2]]

@testset "emitted functions" begin
    for T in (Float32, Float64)
        k = kernels(T)
        u, p, v, t = T[0.3, 0.7], T[0.5, -0.2], T[1.0, 2.0], 0.4
        out = zeros(T, 2)
        P.evaluate!(out, k, u, p, t)
        @test out ≈ f(u, p, t)
        gy, gp, gt = zeros(T, 2), zeros(T, 2), zeros(T, 1)
        P.pull!(gy, gp, gt, k, v, u, p, t)
        @test gy ≈ ForwardDiff.jacobian(u -> f(u, p, t), u)' * v
        @test gp ≈ ForwardDiff.jacobian(p -> f(u, p, t), p)' * v
        @test gt[1] ≈ ForwardDiff.derivative(t -> dot(v, f(u, p, t)), t)
        J = zeros(T, 2, 2)
        P.Jacobian(k)(J, u, p, t)
        @test J ≈ ForwardDiff.jacobian(u -> f(u, p, t), u)
        dual = ForwardDiff.jacobian((du, u) -> P.RightHandSide(k)(du, u, p, t), zeros(T, 2), u)
        @test dual ≈ J
        @test @allocated(P.evaluate!(out, k, u, p, t)) == 0
        @test_throws DimensionMismatch P.evaluate!(zeros(T, 3), k, u, p, t)
    end
end

@testset "words that return NaN" begin
    for (word, x) in ((P.nan_sqrt, -1.0), (P.nan_log, -1.0), (P.nan_asin, 2.0), (P.nan_cos, Inf), (P.nan_acosh, 0.5))
        @test isnan(word(x))
    end
    @test isnan(P.nan_pow(-1.0, 0.5))
    @test P.nan_pow(-2.0, 3.0) == -8.0
    @test P.nan_mod(-0.3, 0.7) ≈ 0.4
end

@testset "products by BLAS" begin
    for T in (Float32, Float64), flip_left in (false, true), flip_right in (false, true)
        A, B = rand(T, 3, 4), rand(T, 4, 5)
        # Row-major memory is the transpose of Julia's.
        a, b = flip_left ? collect(A) : collect(A'), flip_right ? collect(B) : collect(B')
        out = zeros(T, 5, 3)
        GC.@preserve a b out P.product!(
            P.Flat(pointer(out)), 0, P.Flat(pointer(a)), 0, (flip_left ? (1, 3) : (4, 1))...,
            P.Flat(pointer(b)), 0, (flip_right ? (1, 4) : (5, 1))..., 3, 4, 5
        )
        @test out' ≈ A * B
    end
end

@testset "LU of $n equations" for n in (1, 2, 7, 30, P.BY_LOOPS + 6), T in (Float32, Float64, ComplexF64)

    A, b = randn(T, n, n), randn(T, n)
    factors, x = P.Factors(zeros(T, n, n), zeros(LinearAlgebra.BLAS.BlasInt, n)), zeros(T, n)
    @test P.factorise!(factors, A)
    @test P.substitute!(x, factors, b) ≈ A \ b rtol = 1000n * eps(real(T))
    A[:, n] .= 0
    @test !P.factorise!(factors, A)
end

@testset "a solver keeps the way to solve linear equations that it was given" begin
    given = P.algorithm("Rodas5P(linsolve = nothing)")
    @test P.factorising(given).linsolve isa P.DenseLU
    @test P.factorising(P.factorising(given)) === P.factorising(given)
    @test P.factorising(P.algorithm("Tsit5")) === P.algorithm("Tsit5")
    @test P.factorising(P.algorithm("AutoTsit5(Rosenbrock23())")).algs[2].linsolve isa P.DenseLU
end

@testset "solvers by name" begin
    @test P.algorithm("Tsit5") isa SciMLBase.AbstractDEAlgorithm
    @test P.needsjacobian(P.algorithm("Rodas5P()"))
    @test !P.needsjacobian(P.algorithm("Vern9"))
    @test P.needsjacobian(P.algorithm("AutoTsit5(Rosenbrock23())"))
    @test P.algorithm("DP5") isa SciMLBase.AbstractDEAlgorithm  # in a part that is loaded only now
    @test_throws "unknown solver: NoSuch" P.algorithm("NoSuch")
    @test_throws "unknown solver" P.algorithm("run(`true`)")
    @test issubset(["Tsit5", "Rodas5P", "KenCarp4", "FBDF", "Vern9", "DP8"], P.algorithms())
end

@testset "gradients: $sensealg, $solver" for sensealg in (
        "GaussAdjoint", "InterpolatingAdjoint", "QuadratureAdjoint", "BacksolveAdjoint"),
    solver in ("Tsit5", "Rodas5P")

    k, u0, p, saves = kernels(Float64), [0.3, 0.7], [0.5, -0.2], [0.0, 0.5, 1.0]
    options = sensealg == "QuadratureAdjoint" ? (; abstol = 1.0e-10, reltol = 1.0e-10) : (;)
    alg, method = P.algorithm(solver), P.sensitivity(sensealg; options...)
    limits = (; reltol = 1.0e-10, abstol = 1.0e-10)
    run = P.forward(
        k, alg, u0, p, 0.0, 1.0, saves;
        keep = "end", dense = P.needsdense(method), limits..., maxiters = 10^5, tstops = Float64[]
    )
    @test run.ts == saves
    seeds = [1.0 0.5 2.0; -1.0 0.3 1.0]
    du0, dp = P.gradient(run, alg, method, seeds; limits...)
    function loss(x)
        problem = SciMLBase.ODEProblem((u, p, t) -> f(u, p, t), x[1:2], (0.0, 1.0), x[3:4])
        solution = SciMLBase.solve(problem, P.algorithm("Vern9"); saveat = saves, reltol = 1.0e-12, abstol = 1.0e-12)
        return sum(dot(seeds[:, i], solution.u[i]) for i in eachindex(saves))
    end
    expected = ForwardDiff.gradient(loss, [u0; p])
    @test du0 ≈ expected[1:2] rtol = 1.0e-7
    @test dp ≈ expected[3:4] rtol = 1.0e-7
end

@testset "gradients by other means: $sensealg $autojacvec" for (sensealg, autojacvec) in (
    ("ForwardSensitivity", "traced"), ("ForwardDiffSensitivity", "traced"), ("ReverseDiffAdjoint", "traced"),
    ("TrackerAdjoint", "traced"), ("GaussKronrodAdjoint", "traced"), ("GaussAdjoint", "zygote"),
    ("GaussAdjoint", "reversediff"), ("QuadratureAdjoint", "forwarddiff"), ("QuadratureAdjoint", "tracker"),
    ("InterpolatingAdjoint", "reversediff"), ("BacksolveAdjoint", "finitediff")
)
    k, u0, p, saves = kernels(Float64), [0.3, 0.7], [0.5, -0.2], [0.5, 1.0]
    alg = P.algorithm("Tsit5")
    limits = (; reltol = 1.0e-10, abstol = 1.0e-10)
    found = map((P.sensitivity("GaussAdjoint"), P.sensitivity(sensealg; autojacvec))) do method
        run = P.forward(
            k, alg, u0, p, 0.0, 1.0, saves;
            keep = "end", dense = P.needsdense(method), limits..., maxiters = 10^5, tstops = Float64[]
        )
        P.gradient(run, alg, method, [1.0 0.5; -1.0 0.3]; limits...)
    end
    @test found[1][1] ≈ found[2][1] rtol = 1.0e-7
    @test found[1][2] ≈ found[2][2] rtol = 1.0e-7
end

@testset "step size control" begin
    alg = P.algorithm("Tsit5")
    plain = P.controller(alg, "0.4 0.3 0.0 0.9 0.2 10.0")
    @test (plain.beta1, plain.beta2) == (0.7 / 5, 0.4 / 5)
    @test P.controller(alg, "0.1 0.3 0.1 0.9 0.2 10.0").beta == (0.5, -(0.1 + 2 * 0.1), 0.1)
    @test_throws "no controller but" P.controller(P.algorithm("AutoTsit5(Rosenbrock23())"), "0 1 0 0.9 0.2 10")
    @test_throws "no controller but" P.controller(P.algorithm("FBDF"), "0 1 0 0.9 0.2 10")
    @test_throws "unknown sensealg" P.sensitivity("NoSuch")
    @test_throws "unknown autojacvec" P.sensitivity("GaussAdjoint"; autojacvec = "none")
end

@testset "events" begin
    # The condition u0 - p0, as Python would emit it.
    condition = P.Kernels(Float64, 2, 1, 1, Float64[], Int64[])
    P.add!(condition, :f, "function f(t, y, p, c, i, w, out)\n    out[0] = y[0] - p[0]\n    return nothing\nend\n", 0)
    k, alg = kernels(Float64), P.algorithm("Tsit5")
    for (direction, hit) in ((0, 1), (-1, 1), (1, 0))
        watch = P.Watch([condition])
        watch.parameters[1] .= 0.2
        watch.directions[1] = direction
        run = P.forward(
            k, alg, [0.3, 0.0], [1.0, 0.0], 0.0, 1.0, Float64[];
            keep = "end", dense = false, reltol = 1.0e-10, abstol = 1.0e-10, maxiters = 1000, tstops = Float64[],
            callback = P.callback(watch, 4)
        )
        @test watch.hit == hit
        @test P.outcome(run)[2] ≈ (hit == 1 ? log(1.5) : 1.0)
    end
    watch = P.Watch([condition])
    watch.parameters[1] .= 0.2
    watch.halts[1] = false
    run = P.forward(
        k, alg, [0.3, 0.0], [1.0, 0.0], 0.0, 1.0, Float64[];
        keep = "end", dense = false, reltol = 1.0e-10, abstol = 1.0e-10, maxiters = 1000, tstops = Float64[],
        callback = P.callback(watch, 4)
    )
    @test P.outcome(run)[2] == 1.0
    @test only(watch.seen)[2] ≈ log(1.5)
end

@testset "a layer of DiffEqFlux" begin
    layer = P.TorchLayer(kernels(Float64), [0.5, -0.2], (2,))
    @test P.LuxCore.parameterlength(layer) == 2
    node = P.layer(
        Val(:NeuralODE), (layer,), Float64[], (0.0, 1.0), P.algorithm("Tsit5"); saveat = [1.0], reltol = 1.0e-9, abstol = 1.0e-9
    )
    ps, st = P.LuxCore.setup(Xoshiro(0), node)
    loss(ps) = sum(first(node([0.3, 0.7], ps, st)).u[end])
    value, pullback = P.ChainRulesCore.rrule(P.value, layer, [0.3, 0.7], [0.5, -0.2])
    @test value ≈ f([0.3, 0.7], [0.5, -0.2], 0.0)
    @test pullback([1.0, 2.0])[4] ≈ ForwardDiff.jacobian(p -> f([0.3, 0.7], p, 0.0), [0.5, -0.2])' * [1.0, 2.0]
    found = only(Zygote.gradient(loss, ps))
    expected = ForwardDiff.gradient([0.5, -0.2]) do p
        problem = SciMLBase.ODEProblem((u, p, t) -> f(u, p, 0.0), [0.3, 0.7], (0.0, 1.0), p)
        sum(SciMLBase.solve(problem, P.algorithm("Vern9"); reltol = 1.0e-12, abstol = 1.0e-12).u[end])
    end
    @test found ≈ expected rtol = 1.0e-5
end

@testset "delay equations" begin
    # u' = -p0 u(t - lag), of memory that holds u and then u(t - lag).
    side = """
    function f(t, y, p, c, i, w, out)
        out[0] = (-p[0]) * y[1]
        return nothing
    end
    """
    # A history p0 + p1 t.
    before = """
    function f(t, y, p, c, i, w, out)
        out[0] = p[0] + p[1] * t
        return nothing
    end
    """
    exact(t, k, u, a) = t <= 1 ? u - k * a * t : exact(1, k, u, a) - k * (u * (t - 1) - k * a * (t - 1)^2 / 2)
    limits = (; reltol = 1.0e-9, abstol = 1.0e-9, maxiters = 10_000, tstops = Float64[])
    saves, seeds = [0.5, 1.5, 2.0], [1.0 0.5 2.0]
    for (solver, tol) in (("Tsit5", 1.0e-8), ("Vern7", 1.0e-8), ("Rodas5P", 1.0e-6))
        k = P.Kernels(Float64, 2, 1, 1, Float64[], Int64[])
        P.add!(k, :f, side, 0)
        d = P.Delayed(k, nothing, [1.0], typeof(k)[], 1, 0)
        run = P.forward(
            d, P.algorithm(solver), [1.0], [0.7, 1.2], 0.0, 2.0, saves; keep = "end", dense = false, limits...
        )
        @test vec(run.us) ≈ exact.(saves, 0.7, 1.0, 1.2) rtol = tol
        @test run.nf > 0
        du0, dp = P.gradient(run, seeds)
        loss(x) = sum(vec(seeds) .* exact.(saves, x[2], x[1], x[3]))
        @test [du0; dp] ≈ ForwardDiff.gradient(loss, [1.0, 0.7, 1.2]) rtol = 100 * tol
    end
    k = P.Kernels(Float64, 2, 1, 1, Float64[], Int64[])
    h = P.Kernels(Float64, 1, 1, 2, Float64[], Int64[])
    P.add!(k, :f, side, 0)
    P.add!(h, :f, before, 0)
    d = P.Delayed(k, h, [1.0], typeof(k)[], 1, 1)
    run = P.forward(
        d, P.algorithm("Tsit5"), [1.0], [0.7, 1.0, 0.3], 0.0, 1.0, Float64[]; keep = "steps", dense = true, limits...
    )
    out = zeros(1)
    P.interpolate!(out, run, 0.5)
    @test out[1] ≈ 1 - 0.7 * (0.5 + 0.3 * (0.125 - 0.5)) rtol = 1.0e-8
    seeds = zeros(1, length(run.ts))
    seeds[end] = 1
    du0, dp = P.gradient(run, seeds)
    @test [du0; dp] ≈ [1.0, -(1 - 0.3 / 2), -0.7, 0.7 / 2] rtol = 1.0e-6
end

@testset "lags that are functions, and a solve that stops on the way" begin
    k = P.Kernels(Float64, 2, 1, 1, Float64[], Int64[])
    P.add!(k, :f, "function f(t, y, p, c, i, w, out)\n    out[0] = p[0] + y[1]\n    return nothing\nend\n", 0)
    lag = P.Kernels(Float64, 1, 1, 1, Float64[], Int64[])
    P.add!(lag, :f, "function f(t, y, p, c, i, w, out)\n    out[0] = p[0] + t / 4\n    return nothing\nend\n", 0)
    d = P.Delayed(k, nothing, [NaN], [lag], 1, 1)
    # y' = a + y(t - lag), 1 up to the start: the delayed time 3t/4 - b passes it at 4b/3, where y'' jumps.
    exact(a, b) = 2 + a + (1 + a) * (3 / 4 * (1 - (4b / 3)^2) / 2 - b * (1 - 4b / 3))
    limits = (; keep = "end", dense = false, reltol = 1.0e-9, abstol = 1.0e-9, tstops = Float64[])
    run = P.forward(d, P.algorithm("Tsit5"), [1.0], [1.0, 1.0, 0.5], 0.0, 1.0, [1.0]; maxiters = 10_000, limits...)
    @test only(run.us) ≈ exact(1.0, 0.5) rtol = 1.0e-7
    _, dp = P.gradient(run, ones(1, 1))
    @test dp[[1, 3]] ≈ ForwardDiff.gradient(x -> exact(x...), [1.0, 0.5]) rtol = 1.0e-5
    @test_throws ArgumentError P.forward(
        d, P.algorithm("Tsit5"), [1.0], [1.0, 1.0, -0.5], 0.0, 1.0, [1.0]; maxiters = 10_000, limits...)
    short = P.forward(d, P.algorithm("Tsit5"), [1.0], [1.0, 1.0, 0.5], 0.0, 1.0, [1.0]; maxiters = 3, limits...)
    @test short.ts == [short.solution.t[end]] && short.ts[1] < 1
    @test P.gradient(short, ones(1, 1))[1] ≈ [1.0]
end

# -- stochastic equations: dy = -p0 y dt + p1 y dW, the diffusion entry by entry or a matrix of two columns ------------

function scaled(sign::String, columns::Int)
    at(i, j) = columns == 0 ? "$i" : "$(2 * i + j)"
    js = columns == 0 ? (0,) : (0, 1)
    f = join(["    out[$(at(i, j))] = $(j + 1) * ($sign p[0] * y[$i])\n" for i in 0:1 for j in js])
    gy = join(["    gy[$i] = " * join(["$(j + 1) * ($sign p[0] * v[$(at(i, j))])" for j in js], " + ") * "\n"
               for i in 0:1])
    gp = "    gp[0] = " * join(["$(j + 1) * ($sign y[$i] * v[$(at(i, j))])" for i in 0:1 for j in js], " + ") * "\n"
    k = P.Kernels(Float64, 2, columns == 0 ? 2 : 4, 1, Float64[], Int64[])
    P.add!(k, :f, "function f(t, y, p, c, i, w, out)\n$(f)    return nothing\nend\n", 0)
    P.add!(k, :vjp, "function vjp(t, y, v, p, c, i, w, gy, gp, gt)\n$gy$gp    gt[0] = T(0)\n    return nothing\nend\n", 0)
    return k
end

function equation(columns::Int; scalar = false, rows = 1)
    P.Stochastic(
        P.Drift(scaled("-", 0)), P.Diffusion(scaled("+", columns), 1, (rows, 2 ÷ rows, columns)), scalar
    )
end

function walked(e, alg, path; options...)
    return P.forward(
        e, alg, [1.0, 2.0], [0.5, 0.3], 0.0, 1.0, [0.5, 1.0];
        keep = "end", seed = UInt64(3), path, tstops = Float64[], maxiters = 10^5, options...
    )
end

function brownian(width, steps)
    rng = Xoshiro(1)
    W = hcat(zeros(width), cumsum(randn(rng, width, steps) ./ sqrt(steps); dims = 2))
    return P.Path{Float64}(collect(range(0.0, 1.0; length = steps + 1)), W, zeros(0, 0))
end

"The end of Euler-Maruyama's or Heun's path, written out."
function stepped(x, path, columns; heun)
    u, a, b = x[1:2], x[3], x[4]
    g(u, dW) = columns == 0 ? b .* u .* dW : b .* u .* (dW[1] + 2 * dW[2])
    for i in 1:(length(path.ts) - 1)
        h, dW = path.ts[i + 1] - path.ts[i], path.W[:, i + 1] - path.W[:, i]
        ahead = u .- h .* a .* u .+ g(u, dW)
        u = heun ? u .- h / 2 .* a .* (u .+ ahead) .+ (g(u, dW) .+ g(ahead, dW)) ./ 2 : ahead
    end
    return u
end

@testset "stochastic steps and their tape: $text, $columns columns" for text in ("EM(false)", "EulerHeun"),
    columns in (0, 2)

    heun = text == "EulerHeun"
    alg, path, e = P.stochastic(text, heun), brownian(2, 20), equation(columns)
    run = walked(e, alg, path)
    x = [1.0, 2.0, 0.5, 0.3]
    @test run.us[:, end] ≈ stepped(x, path, columns; heun)
    du0, dp = P.gradient(run, alg, "TrackerAdjoint", [0.0 1.0; 0.0 -2.0])
    expected = ForwardDiff.gradient(z -> dot([1.0, -2.0], stepped(z, path, columns; heun)), x)
    @test [du0; dp] ≈ expected
end

@testset "the stochastic adjoint, $columns columns" for columns in (0, 2)
    path, e, x = brownian(2, 4000), equation(columns), [1.0, 2.0, 0.5, 0.3]
    run = walked(e, P.stochastic("EulerHeun", true), path)
    du0, dp = P.backsolved(run, e, run.p, [0.0 1.0; 0.0 -2.0]; checkpointing = true)
    expected = ForwardDiff.gradient(z -> dot([1.0, -2.0], stepped(z, path, columns; heun = true)), x)
    @test [du0; dp] ≈ expected rtol = 1.0e-2
end

@testset "a path that is drawn as steps are chosen" begin
    alg = P.stochastic("SOSRI", false)
    run = walked(equation(0), alg, nothing; reltol = 1.0e-4, abstol = 1.0e-4)
    exact = [1.0, 2.0] .* exp.((-0.5 - 0.3^2 / 2) .+ 0.3 .* run.path.W[:, end])
    @test run.us[:, end] ≈ exact rtol = 1.0e-3
    du0, dp = P.gradient(run, alg, "TrackerAdjoint", [0.0 1.0; 0.0 1.0])
    @test du0 ≈ exact ./ [1.0, 2.0] rtol = 1.0e-3
    @test dp ≈ [-sum(exact), sum(exact .* (run.path.W[:, end] .- 0.3))] rtol = 1.0e-2
    scalar = walked(equation(0; scalar = true), alg, nothing; reltol = 1.0e-2, abstol = 1.0e-2)
    @test scalar.path.W[1, :] == scalar.path.W[2, :]
    @test scalar.path.W[1, :] != run.path.W[1, :]
end

@testset "solvers for stochastic equations by name" begin
    @test P.stochastic("SRIW1()", false) isa SciMLBase.AbstractDEAlgorithm
    @test SciMLBase.alg_interpretation(P.stochastic("RKMil", true)) == SciMLBase.AlgorithmInterpretation.Stratonovich
    @test_throws "unknown solver: Tsit6" P.stochastic("Tsit6", false)
    @test issubset(["EM", "SOSRI", "LambaEM"], split(P.bridge_stochastic_names()))
    @test_throws "unknown sensealg" P.gradient(walked(equation(0), P.stochastic("EM", false), brownian(2, 4)), nothing, "No", zeros(2, 2))
end

@testset "DiffEqFlux's own layer, and its pullback" begin
    parts = (P.TorchLayer(kernels(Float64), zeros(2), (2,)),)
    options = (; saveat = [0.5, 1.0], reltol = 1.0e-10, abstol = 1.0e-10)
    node = P.layer(Val(:NeuralODE), parts, Float64[], (0.0, 1.0), P.algorithm("Tsit5"); options...)
    run = P.through(Val(:NeuralODE), parts, node, [0.3, 0.7], [0.5, -0.2], (2,); wanted = true)
    seeds = [1.0 0.5; -1.0 0.3]
    du0, dp = run.back(seeds)
    function loss(x)
        problem = SciMLBase.ODEProblem((u, p, t) -> f(u, p, 0.0), x[1:2], (0.0, 1.0), x[3:4])
        solution = SciMLBase.solve(
            problem, P.algorithm("Vern9"); saveat = [0.5, 1.0], reltol = 1.0e-12, abstol = 1.0e-12)
        return sum(dot(seeds[:, i], solution.u[i]) for i in 1:2)
    end
    @test run.retcode == "Success"
    @test [du0; dp] ≈ ForwardDiff.gradient(loss, [0.3, 0.7, 0.5, -0.2]) rtol = 1.0e-6
    quiet = P.through(Val(:NeuralODE), parts, node, [0.3, 0.7], [0.5, -0.2], (2,); wanted = false)
    @test quiet.us ≈ run.us
end

@testset "layers of Boltz's, and their products" begin
    @test [P.basis(:Chebyshev, 4)([1.5])...] ≈ [1.0, 1.5, 3.5, 9.0]
    x, seed = [0.3 -0.4; 0.9 1.7], [1.0 -0.5; 0.3 2.0]
    grid = collect(-1.0:0.5:1.0)
    kinds = Base.require(Base.identify_package(P, "DataInterpolations"))
    layers = (
        (P.product(Float64, ["Chebyshev", "Sin"], [3, 2], 2), 0.1 .* (1:12)),
        (Base.invokelatest(P.spline, Base.invokelatest(() -> kinds.CubicSpline), grid, false), sin.(1:5)),
        (Base.invokelatest(P.spline, Base.invokelatest(() -> kinds.CubicSpline), grid, true), [sin.(1:5); grid])
    )
    for (layer, p) in layers
        q, n = Vector{Float64}(p), length(x)
        @test length(layer.p) == length(q)
        loss(z) = sum(seed .* Base.invokelatest(P.value, layer, reshape(z[1:n], 2, 2), z[(n + 1):end]))
        back = Base.invokelatest(() -> Zygote.pullback((x, p) -> P.value(layer, x, p), x, q)[2](seed))
        @test [vec(back[1]); back[2]] ≈ ForwardDiff.gradient(loss, [vec(x); q])
    end
end

@testset "derivatives of a traced module's derivative" begin
    layer = P.TorchLayer(kernels(Float64), zeros(2), (2,))
    x, p, v = [0.3, 0.7], [0.5, -0.2], [1.0, 2.0]
    by_hand(x) = ForwardDiff.gradient(y -> dot(v, f(y, p, 0.0)), x)
    @test P.pulled(layer, v, x, p)[1] ≈ by_hand(x)
    @test ForwardDiff.jacobian(x -> P.pulled(layer, v, x, p)[1], x) ≈ ForwardDiff.jacobian(by_hand, x)
    tracked, back = P.Tracker.forward((x, p) -> P.value(layer, x, p), x, p)
    @test P.Tracker.data(tracked) ≈ f(x, p, 0.0)
    @test P.Tracker.data(back(v)[1]) ≈ by_hand(x)
end

# A mass matrix: u1' = -p0 u1 u2, 0 = u2 - p1 (1 + t) u1, so u1 = 1 / (1 / u1(0) + p0 p1 (t + t^2 / 2)).
const ALGEBRAIC = (
    f = """
    function f(t, y, p, c, i, w, out)
        out[0] = -p[0] * y[0] * y[1]
        out[1] = y[1] - p[1] * (1 + t) * y[0]
        return nothing
    end
    """,
    vjp = """
    function vjp(t, y, v, p, c, i, w, gy, gp, gt)
        gy[0] = -p[0] * y[1] * v[0] - p[1] * (1 + t) * v[1]
        gy[1] = -p[0] * y[0] * v[0] + v[1]
        gp[0] = -y[0] * y[1] * v[0]
        gp[1] = -(1 + t) * y[0] * v[1]
        gt[0] = -p[1] * y[0] * v[1]
        return nothing
    end
    """,
    vjp_y = """
    function vjp_y(t, y, v, p, c, i, w, gy)
        gy[0] = -p[0] * y[1] * v[0] - p[1] * (1 + t) * v[1]
        gy[1] = -p[0] * y[0] * v[0] + v[1]
        return nothing
    end
    """,
    jac = """
    function jac(t, y, p, c, i, w, J, ft)
        J[0] = -p[0] * y[1]
        J[1] = -p[0] * y[0]
        J[2] = -p[1] * (1 + t)
        J[3] = T(1)
        ft[0] = T(0)
        ft[1] = -p[1] * y[0]
        return nothing
    end
    """
)
slow(t, u, p) = inv(inv(u) + p[1] * p[2] * (t + t^2 / 2))
limits(tol) = (; keep = "steps", dense = true, reltol = tol, abstol = tol, maxiters = 100_000, tstops = Float64[])

@testset "a singular mass matrix" begin
    k = P.Kernels(Float64, 2, 2, 2, Float64[], Int64[])
    foreach(name -> P.add!(k, name, ALGEBRAIC[name], 0), keys(ALGEBRAIC))
    equation = P.MassEquation(k, [1.0 0.0; 0.0 0.0])
    u0, p, saves, seeds = [0.8, 1.04], [0.7, 1.3], [0.0, 0.5, 1.0], [1.0 2.0 3.0; 1.0 1.0 1.0]
    alg = P.algorithm("Rodas5P")
    @test P.abilities(alg) == (true, true, false)
    @test P.abilities(P.algorithm("Tsit5")) == (false, false, false)
    run = P.forward(equation, alg, u0, p, 0.0, 1.0, saves; limits(1.0e-9)...)
    @test SciMLBase.successful_retcode(P.outcome(run)[1])
    @test run.us[:, 3] ≈ [slow(1.0, 0.8, p), 2 * p[2] * slow(1.0, 0.8, p)] rtol = 1.0e-7
    loss(x) = sum(seeds[1, i] * slow(t, x[1], x[2:3]) + seeds[2, i] * x[3] * (1 + t) * slow(t, x[1], x[2:3])
    for (i, t) in enumerate(saves))
    exact = ForwardDiff.gradient(loss, [0.8; p])
    to_u0, to_p = P.gradient(run, alg, P.sensitivity("GaussAdjoint"), seeds; reltol = 1.0e-9, abstol = 1.0e-9)
    @test to_u0[1] ≈ exact[1] rtol = 1.0e-5
    @test to_u0[2] == 0  # the algebraic variable is a function of the others
    @test to_p ≈ exact[2:3] rtol = 1.0e-5
end

@testset "a fully implicit equation" begin
    k = P.Kernels(Float64, 4, 2, 2, Float64[], Int64[])
    P.add!(
        k, :f, """
        function f(t, y, p, c, i, w, out)
            out[0] = y[2] + p[0] * y[0] * y[1]
            out[1] = y[1] - p[1] * (1 + t) * y[0]
            return nothing
        end
        """, 0
    )
    p, start = [0.7, 1.3], [0.8, 1.04, -0.7 * 0.8 * 1.04, 0.0]
    alg = P.algorithm("DFBDF")
    @test P.abilities(alg)[3]
    run = P.forward(P.ImplicitEquation(k, [true, false]), alg, start, p, 0.0, 1.0, [0.5, 1.0]; limits(1.0e-8)...)
    @test SciMLBase.successful_retcode(P.outcome(run)[1])
    @test run.us[:, 2] ≈ [slow(1.0, 0.8, p), 2 * p[2] * slow(1.0, 0.8, p)] rtol = 1.0e-5
end

# Those of arrays whose elements cannot be read one by one need a package that no user needs.
Base.identify_package("JLArrays") === nothing ? @info("no JLArrays: arrays.jl is left out") : include("arrays.jl")
