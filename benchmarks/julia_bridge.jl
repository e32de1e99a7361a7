# What `julia_bridge.py` compares the bridge with: the same gradients without Python. Each is a function of no arguments,
# known by a number, which Python calls as a C function: that costs a microsecond.

module JuliaBridge

using ComponentArrays: ComponentArray
using DiffEqFlux: NeuralODE
using Lux: Lux
using OrdinaryDiffEq: OrdinaryDiffEq, ODEFunction, ODEProblem, Rodas5P, Tsit5, solve
using PyDiffEqFlux: PyDiffEqFlux
using Random: Xoshiro
using SciMLBase: FullSpecialize
using SciMLSensitivity
using Zygote: Zygote

const P = PyDiffEqFlux
const SILENT = P.SILENT
const GRADIENTS = Dict{String, Any}()

const NAMES = String[]

run_entry(k::Int64) = (GRADIENTS[NAMES[k]](); nothing)
"The address of a C function that computes the gradient with a number."
entry() = Int(UInt(@cfunction(run_entry, Cvoid, (Int64,))))

"Keep a gradient and return its number and its value, flat: with respect to the parameters."
function keep(gradient, name::String)
    value = Float64.(vec(gradient()))
    GRADIENTS[name] = gradient
    push!(NAMES, name)
    return (length(NAMES), value)
end

# -- the spiral ------------------------------------------------------------------------------------------------------

const SAVES = collect(range(0.0, 1.5; length = 30))

"The bridge's own Julia code, with the traced functions."
function ours(kernels::Int, p::Int, n::Int)
    k, flat = P.HELD[kernels], copy(P.array(Float32, p, n))
    alg, gauss = P.algorithm("Tsit5"), P.sensitivity("GaussAdjoint"; checkpointing = false)
    return keep(() -> ours(k, flat, alg, gauss), "ours")
end

function ours(k, flat, alg, gauss)
    run = P.forward(
        k, alg, Float32[2, 0], flat, 0.0, 1.5, SAVES;
        keep = "steps", dense = true, reltol = 1.0e-6, abstol = 1.0e-6, maxiters = 100_000, tstops = Float64[]
    )
    return P.gradient(run, alg, gauss, 2 .* run.us; reltol = 1.0e-6, abstol = 1.0e-6)[2]
end

const SENSEALGS = Dict(
    "default" => (;),
    "GaussAdjoint, Zygote" => (; sensealg = GaussAdjoint(; autojacvec = ZygoteVJP())),
    "GaussAdjoint, ReverseDiff" => (; sensealg = GaussAdjoint(; autojacvec = ReverseDiffVJP(true))),
    "InterpolatingAdjoint, Zygote" => (; sensealg = InterpolatingAdjoint(; autojacvec = ZygoteVJP())),
    "InterpolatingAdjoint, ReverseDiff" => (; sensealg = InterpolatingAdjoint(; autojacvec = ReverseDiffVJP(true))),
    "QuadratureAdjoint, Zygote" => (; sensealg = QuadratureAdjoint(; autojacvec = ZygoteVJP())),
    "QuadratureAdjoint, ReverseDiff" => (; sensealg = QuadratureAdjoint(; autojacvec = ReverseDiffVJP(true))),
    "BacksolveAdjoint, Zygote" => (; sensealg = BacksolveAdjoint(; autojacvec = ZygoteVJP())),
    "BacksolveAdjoint, ReverseDiff" => (; sensealg = BacksolveAdjoint(; autojacvec = ReverseDiffVJP(true))),
    "ForwardDiffSensitivity" => (; sensealg = ForwardDiffSensitivity()),
    "ReverseDiffAdjoint" => (; sensealg = ReverseDiffAdjoint()),
    "TrackerAdjoint" => (; sensealg = TrackerAdjoint()),
)

"DiffEqFlux's `NeuralODE` with a sensitivity algorithm of the list, and the same weights."
function diffeqflux(name::String, p::Int, n::Int)
    flat = P.array(Float32, p, n)
    net = Lux.Chain(x -> x .^ 3, Lux.Dense(2 => 50, tanh), Lux.Dense(50 => 2))
    options = (; saveat = range(0.0f0, 1.5f0; length = 30), reltol = 1.0f-6, abstol = 1.0f-6, verbose = SILENT)
    node = NeuralODE(net, (0.0f0, 1.5f0), Tsit5(); options..., SENSEALGS[name]...)
    ps, st = Lux.setup(Xoshiro(0), net)
    weights = ComponentArray{Float32}(ps)
    # torch's matrices lie by rows.
    weights.layer_2.weight .= reshape(flat[1:100], 2, 50)'
    weights.layer_2.bias .= flat[101:150]
    weights.layer_3.weight .= reshape(flat[151:250], 50, 2)'
    weights.layer_3.bias .= flat[251:252]
    u0 = Float32[2, 0]
    loss(w) = sum(abs2, Array(first(node(u0, w, st))))
    number, _ = keep(() -> zeros(0), name)
    GRADIENTS[name] = () -> first(Zygote.gradient(loss, weights))
    g = GRADIENTS[name]()
    return (number, Float64[vec(g.layer_2.weight'); g.layer_2.bias; vec(g.layer_3.weight'); g.layer_3.bias])
end

# -- stiff problems, written by hand -----------------------------------------------------------------------------------

function rober!(du, u, p, t)
    slow, fast, middle = p[1] * u[1], p[2] * u[2]^2, p[3] * u[2] * u[3]
    du[1] = middle - slow
    du[2] = slow - middle - fast
    du[3] = fast
    return nothing
end

function rober_jac!(J, u, p, t)
    J[1, 1], J[1, 2], J[1, 3] = -p[1], p[3] * u[3], p[3] * u[2]
    J[2, 1], J[2, 2], J[2, 3] = p[1], -p[3] * u[3] - 2 * p[2] * u[2], -p[3] * u[2]
    J[3, 1], J[3, 2], J[3, 3] = 0, 2 * p[2] * u[2], 0
    return nothing
end

function rober_vjp!(out, v, u, p, t)
    out[1] = p[1] * (v[2] - v[1])
    out[2] = p[3] * u[3] * (v[1] - v[2]) + 2 * p[2] * u[2] * (v[3] - v[2])
    out[3] = p[3] * u[2] * (v[1] - v[2])
    return nothing
end

function rober_vjp_p!(out, v, u, p, t)
    out[1] = u[1] * (v[2] - v[1])
    out[2] = u[2]^2 * (v[3] - v[2])
    out[3] = u[2] * u[3] * (v[1] - v[2])
    return nothing
end

# The 25 reactions of POLLU: the two species that react, 0 where there is one only; and which species change, and by how much.
const REACTANTS = (
    (1, 0), (2, 4), (5, 2), (7, 0), (7, 0), (7, 6), (9, 0), (9, 6), (11, 2), (11, 1), (13, 0), (10, 2), (14, 0),
    (1, 6), (3, 0), (4, 0), (4, 0), (16, 0), (16, 0), (17, 6), (19, 0), (19, 0), (1, 4), (19, 1), (20, 0),
)
const CHANGES = (
    ((1, -1), (2, 1), (3, 1)), ((1, 1), (2, -1), (4, -1)), ((1, 1), (2, -1), (5, -1), (6, 1)), ((5, 2), (7, -1), (8, 1)),
    ((7, -1), (8, 1)), ((5, 1), (6, -1), (7, -1), (8, 1)), ((5, 1), (8, 1), (9, -1), (10, 1)), ((6, -1), (9, -1), (11, 1)),
    ((1, 1), (2, -1), (10, 1), (11, -1), (12, 1)), ((1, -1), (11, -1), (13, 1)), ((1, 1), (11, 1), (13, -1)),
    ((1, 1), (2, -1), (10, -1), (14, 1)), ((5, 1), (7, 1), (14, -1)), ((1, -1), (6, -1), (15, 1)), ((3, -1), (4, 1)),
    ((4, -1), (16, 1)), ((3, 1), (4, -1)), ((6, 2), (16, -1)), ((3, 1), (16, -1)), ((5, 1), (6, -1), (17, -1), (18, 1)),
    ((2, 1), (19, -1)), ((1, 1), (3, 1), (19, -1)), ((1, -1), (4, -1), (19, 1)), ((1, -1), (19, -1), (20, 1)),
    ((1, 1), (19, 1), (20, -1)),
)

function pollu!(du, u, p, t)
    r1, r2, r3, r4, r5 = p[1] * u[1], p[2] * u[2] * u[4], p[3] * u[5] * u[2], p[4] * u[7], p[5] * u[7]
    r6, r7, r8, r9 = p[6] * u[7] * u[6], p[7] * u[9], p[8] * u[9] * u[6], p[9] * u[11] * u[2]
    r10, r11, r12, r13 = p[10] * u[11] * u[1], p[11] * u[13], p[12] * u[10] * u[2], p[13] * u[14]
    r14, r15, r16, r17 = p[14] * u[1] * u[6], p[15] * u[3], p[16] * u[4], p[17] * u[4]
    r18, r19, r20, r21 = p[18] * u[16], p[19] * u[16], p[20] * u[17] * u[6], p[21] * u[19]
    r22, r23, r24, r25 = p[22] * u[19], p[23] * u[1] * u[4], p[24] * u[19] * u[1], p[25] * u[20]
    du[1] = r2 + r3 + r9 + r11 + r12 + r22 + r25 - r1 - r10 - r14 - r23 - r24
    du[2] = r1 + r21 - r2 - r3 - r9 - r12
    du[3] = r1 + r17 + r19 + r22 - r15
    du[4] = r15 - r2 - r16 - r17 - r23
    du[5] = 2 * r4 + r6 + r7 + r13 + r20 - r3
    du[6] = 2 * r18 + r3 - r6 - r8 - r14 - r20
    du[7] = r13 - r4 - r5 - r6
    du[8] = r4 + r5 + r6 + r7
    du[9] = -r7 - r8
    du[10] = r7 + r9 - r12
    du[11] = r8 + r11 - r9 - r10
    du[12] = r9
    du[13] = r10 - r11
    du[14] = r12 - r13
    du[15] = r14
    du[16] = r16 - r18 - r19
    du[17] = -r20
    du[18] = r20
    du[19] = r23 + r25 - r21 - r22 - r24
    du[20] = r24 - r25
    return nothing
end

# Loops over the reactions that the compiler unrolls: as quick as a line for each entry.

@generated function pollu_jac!(J, u, p, t)
    lines = [:(fill!(J, 0))]
    for (r, (a, b)) in enumerate(REACTANTS), (s, change) in CHANGES[r]
        push!(lines, :(J[$s, $a] += $change * p[$r] * $(b == 0 ? 1 : :(u[$b]))))
        b == 0 || push!(lines, :(J[$s, $b] += $change * p[$r] * u[$a]))
    end
    return quote
        @inbounds begin
            $(lines...)
        end
        return nothing
    end
end

@generated function pollu_vjp!(out, v, u, p, t)
    lines = [:(fill!(out, 0))]
    for (r, (a, b)) in enumerate(REACTANTS)
        push!(lines, :(g = p[$r] * (+($((:($change * v[$s]) for (s, change) in CHANGES[r])...)))))
        push!(lines, :(out[$a] += g * $(b == 0 ? 1 : :(u[$b]))))
        b == 0 || push!(lines, :(out[$b] += g * u[$a]))
    end
    return quote
        @inbounds begin
            $(lines...)
        end
        return nothing
    end
end

@generated function pollu_vjp_p!(out, v, u, p, t)
    lines = []
    for (r, (a, b)) in enumerate(REACTANTS)
        g = :(+($((:($change * v[$s]) for (s, change) in CHANGES[r])...)))
        push!(lines, :(out[$r] = $g * u[$a] * $(b == 0 ? 1 : :(u[$b]))))
    end
    return quote
        @inbounds begin
            $(lines...)
        end
        return nothing
    end
end

notime!(dT, u, p, t) = (fill!(dT, 0); nothing)

const BY_HAND = Dict(
    "rober" => (rober!, rober_jac!, rober_vjp!, rober_vjp_p!), "pollu" => (pollu!, pollu_jac!, pollu_vjp!, pollu_vjp_p!),
)

"""
A stiff problem's gradient by Rodas5P and GaussAdjoint. `way` is `"vjp"` (all derivatives written by hand) or `"tape"` (a
Jacobian by hand, products by ReverseDiff's compiled tape). The loss is half the squared distance of the saved states to 1.
"""
function stiff(name::String, way::String, u::Int, n::Int, p::Int, np::Int, ts::Int, nts::Int, rtol::Float64, atol::Float64)
    f!, jac!, vjp!, vjp_p! = BY_HAND[name]
    u0, flat, times = (copy(P.array(Float64, at, count)) for (at, count) in ((u, n), (p, np), (ts, nts)))
    products = way == "vjp" ? (; vjp = vjp!, vjp_p = vjp_p!) : (;)
    f = ODEFunction{true, FullSpecialize}(f!; jac = jac!, tgrad = notime!, jac_prototype = zeros(n, n), products...)
    problem = ODEProblem{true}(f, u0, (0.0, times[end]), flat)
    sensealg = GaussAdjoint(; autojacvec = way == "vjp" ? true : ReverseDiffVJP(true))
    return keep(() -> stiff(problem, sensealg, times, rtol, atol), "$name, $way")
end

function stiff(problem, sensealg, times, reltol, abstol)
    alg = Rodas5P()
    limits = (; reltol, abstol, maxiters = 100_000, verbose = SILENT)
    solution = solve(problem, alg; dense = true, limits...)
    towards_one(out, u, p, t, i) = (out .= u .- 1; nothing)
    _, dp = adjoint_sensitivities(
        solution, P.backward(alg); t = times, dgdu_discrete = towards_one, sensealg, reltol, abstol, verbose = SILENT
    )
    return dp
end

end
