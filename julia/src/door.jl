# DiffEqFlux's own layer around a traced module, differentiated by Zygote: `backend="diffeqflux"`.

"""
    TimedLayer(kernels, p)

A traced module of time and state as a Lux layer. DiffEqFlux hands its models no time: here it is the last state, whose rate
of change is one.
"""
struct TimedLayer{T} <: LuxCore.AbstractLuxLayer
    kernels::Kernels{T}
    p::Vector{T}
end

LuxCore.initialparameters(::AbstractRNG, layer::TimedLayer) = copy(layer.p)
LuxCore.initialstates(::AbstractRNG, ::TimedLayer) = (;)
LuxCore.parameterlength(layer::TimedLayer) = length(layer.p)
LuxCore.statelength(::TimedLayer) = 0
(layer::TimedLayer)(x, p, st::NamedTuple) = (value(layer, x, p), st)

function value(layer::TimedLayer{T}, x::AbstractVector, p::AbstractVector) where {T}
    k, flat = layer.kernels, flattened(T, x)
    out = ones(T, k.n + 1)
    evaluate!(view(out, 1:k.n), k, flat[1:k.n], flattened(T, p), flat[end])
    return out
end

function ChainRulesCore.rrule(::typeof(value), layer::TimedLayer{T}, x::AbstractVector, p::AbstractVector) where {T}
    k, flat, q = layer.kernels, flattened(T, x), flattened(T, p)
    function pullback(seed)
        gx, gp = Vector{T}(undef, k.n + 1), Vector{T}(undef, k.np)
        pull!(view(gx, 1:k.n), gp, k.gt, k, flattened(T, unthunk(seed))[1:k.n], flat[1:k.n], q, flat[end])
        gx[end] = k.gt[1]
        return NoTangent(), NoTangent(), gx, gp
    end
    return value(layer, x, p), pullback
end

"""
    LayerRun(us, back, retcode, n)

What a layer returned, one state a column, and the pullback of that.
"""
struct LayerRun{T}
    us::Matrix{T}
    back::Any
    retcode::String
    n::Int
end

"The sensitivity algorithm that a layer is told to use; none leaves it to the layer."
function layersensealg(name::AbstractString)
    isempty(name) && return (;)
    for known in (:BacksolveAdjoint, :InterpolatingAdjoint, :QuadratureAdjoint, :GaussAdjoint)
        name == string(known) || continue
        return (; sensealg = getfield(SciMLSensitivity, known)(; autojacvec = SciMLSensitivity.ZygoteVJP()))
    end
    throw(ArgumentError("unknown sensealg: $name for a layer of DiffEqFlux"))
end

"""
    through(layer, u0, p, tspan, alg; options...)

Run DiffEqFlux's `NeuralODE` around `layer`, and keep its pullback.
"""
function through(layer, u0::Vector{T}, p::Vector{T}, tspan, alg, n::Int; options...) where {T}
    node = DiffEqFlux.NeuralODE(layer, tspan, alg; options...)
    st = LuxCore.initialstates(Xoshiro(0), node)
    retcode = Ref("")
    us, back = Zygote.pullback(u0, p) do u, q
        solution = first(node(u, q, st))
        ChainRulesCore.ignore_derivatives(() -> (retcode[] = string(solution.retcode); nothing))
        Array(solution)
    end
    return LayerRun{T}(us, back, retcode[], n)
end

"""
    bridge_layer(kernels, timed, alg, sensealg, y0, p, t0, t1, saves, nsaves, rtol, atol, ntol, maxiters, options)

Run the layer; returns the run's number, how many states there are, and how it went.
"""
function bridge_layer(
        kernels::Int, timed::Bool, alg::Int, sensealg::AbstractString, y0::Integer, p::Integer, t0::Float64, t1::Float64,
        saves::Integer, nsaves::Int, rtol::Integer, atol::Integer, ntol::Int, maxiters::Int, options::Int
)
    k = HELD[kernels]
    T = eltype(k.gt)
    u0, q = copy(array(T, y0, k.n)), copy(array(T, p, k.np))
    layer = timed ? TimedLayer(k, q) : TorchLayer(k, q, (k.n,))
    k.nf = 0
    wide(x) = timed && x isa AbstractVector ? [x; minimum(x)] : x
    run = through(
        layer, timed ? [u0; T(t0)] : u0, q, (t0, t1), HELD[alg], k.n; saveat = copy(array(Float64, saves, nsaves)),
        reltol = wide(tolerance(rtol, ntol)), abstol = wide(tolerance(atol, ntol)), maxiters, verbose = SILENT,
        layersensealg(sensealg)..., (options == 0 ? (;) : HELD[options])...
    )
    return hold(run), size(run.us, 2), run.retcode, k.nf
end

"Write the states that a layer returned."
function bridge_layer_states(run::Int, us::Integer)
    r = HELD[run]
    copyto!(array(eltype(r.us), us, r.n, size(r.us, 2)), view(r.us, 1:r.n, :))
    return nothing
end

"Write the gradient with respect to the initial state and the parameters."
function bridge_layer_gradient(run::Int, seeds::Integer, du0::Integer, dp::Integer, np::Int)
    r = HELD[run]
    T = eltype(r.us)
    wide = zeros(T, size(r.us))
    copyto!(view(wide, 1:r.n, :), array(T, seeds, r.n, size(r.us, 2)))
    to_u0, to_p = r.back(wide)
    copyto!(array(T, du0, r.n), to_u0[1:r.n])
    to_p === nothing ? fill!(array(T, dp, np), 0) : copyto!(array(T, dp, np), to_p)
    return nothing
end
