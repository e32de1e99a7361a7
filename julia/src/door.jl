# DiffEqFlux's own layers, called and differentiated by Zygote: `backend="diffeqflux"`.

# -- how a layer is called --------------------------------------------------------------------------

"What a layer of this kind is called with, for a flat initial state and flat parameters."
given(::Val, parts, u0, sizes, p) = reshape(u0, sizes), p
given(::Val{:NeuralDAE}, parts, both, sizes, p) = (both[1:(end ÷ 2)], both[(end ÷ 2 + 1):end]), p
given(::Union{Val{:NeuralDSDE}, Val{:NeuralSDE}}, parts, u0, sizes, p) = u0, Both(p, length(first(parts).p))

"What a layer is to remember; of a flow, which trace it takes."
remembered(::Val, node) = LuxCore.initialstates(Xoshiro(0), node)
function remembered(::Union{Val{:FFJORD}, Val{:FFJORDDistribution}}, node)
    return (; model = LuxCore.initialstates(Xoshiro(0), node.model), regularize = false, monte_carlo = false)
end

"What a layer returns, as something that is an array or can be made one."
called(::Val, node, x, p, st) = first(node(x, p, st))
called(::Val{:AugmentedNDELayer}, node, x, p, st) = first(node(x, (; layer_1 = (;), layer_2 = p), st))
called(::Val{:FFJORD}, node, x, p, st) = first(first(node(x, p, st)))
# What `rand` of an `FFJORDDistribution` calls, with points of ours in the place of draws. It has no gradient: Zygote fails
# on the reversed time span.
function called(::Val{:FFJORDDistribution}, n, z, p, st)
    flow = DiffEqFlux.FFJORD(n.model, Given(z), n.ad, n.input_dims, n.tspan, n.args, n.kwargs)
    return DiffEqFlux.__backward_ffjord(eltype(z), flow, size(z, 2), p, st, nothing)
end

"A pullback's value for the initial state as the gradient with respect to it."
brought(::Val, node, x) = x
brought(::Val{:NeuralODEMM}, node, x) = x === nothing ? x : weighed(node.mass_matrix, x)

"How a solve went, whose return code was `retcode` where there was one."
ended(::Val, node, retcode, us) = retcode
ended(::Val{:multiple_shoot}, node, retcode, us) = any(isnan, us) ? "Failure" : "Success"
ended(::Val{:FFJORD}, node, retcode, us) = arrived(node, node.tspan...)
ended(::Val{:FFJORDDistribution}, node, retcode, us) = arrived(node, reverse(node.tspan)...)

function arrived(node, t0, t1)
    watched, maxiters = node.kwargs[:isoutofdomain], node.kwargs[:maxiters]
    if !get(node.kwargs, :adaptive, true)  # fixed steps are not watched
        return ceil(abs(t1 - t0) / abs(node.kwargs[:dt]) - 1.0e-8) > maxiters ? "MaxIters" : "Success"
    end
    # The last step that is allowed may have been rejected.
    watched.count >= maxiters && return "MaxIters"
    return watched.t == t1 || t0 == t1 ? "Success" : "Failure"
end

"""
    LayerRun(us, back, retcode)

What a layer returned, one state a column; its pullback; and how it went.
"""
struct LayerRun{T}
    us::Matrix{T}
    back::Any
    retcode::String
end

"""
    through(kind, parts, node, u0, p, sizes; wanted, duals)

Run a layer on an initial state of these `sizes`, and keep its pullback where a gradient is `wanted`: Zygote's, or that of
dual numbers through the layer.
"""
function through(kind::Val, parts, node, u0::Vector{T}, p::Vector{T}, sizes; wanted::Bool, duals::Bool = false) where {T}
    st, retcode = remembered(kind, node), Ref("Success")
    x, q = given(kind, parts, u0, sizes, p)
    function states(x, q)
        found = called(kind, node, x, q, st)
        ChainRulesCore.ignore_derivatives() do
            found isa SciMLBase.AbstractSciMLSolution && (retcode[] = string(found.retcode))
            nothing
        end
        return Array(found)
    end
    us, back = wanted && !duals ? deeply(() -> Zygote.pullback(states, x, q)) : (states(x, q), nothing)
    columns(us) = reshape(us, :, size(us, ndims(us)))
    went = ended(kind, node, retcode[], us)
    function pullback(seeds)
        if duals
            n = length(u0)
            function again(z)
                found = states(dualled(kind, parts, node, z[1:n], sizes, z[(n + 1):end])...)
                ended(kind, node, retcode[], found) == "Success" ||
                    throw(ErrorException("the solver came to an end of its own on dual numbers"))
                return eachcol(columns(found))
            end
            found = bychunks(again, [u0; p], seeds, Val(CHUNK))
            return found[1:n], found[(n + 1):end]
        end
        to_x, to_q = deeply(() -> back(reshape(seeds, size(us))))
        return brought(kind, node, to_x), to_q
    end
    return LayerRun{T}(columns(us), pullback, went)
end

"What a layer is called with on dual numbers."
dualled(kind::Val, parts, node, u0, sizes, p) = given(kind, parts, u0, sizes, p)

function dualled(kind::Val{:FFJORDDistribution}, parts, node, u0, sizes, p)
    node.kwargs[:isoutofdomain].count = 0
    return given(kind, parts, u0, sizes, p)
end

# Algebraic variables and derivatives have to be consistent in their derivatives, too.
function dualled(kind::Val{:NeuralDAE}, parts, node, both, sizes, p)
    model, known = first(parts), node.differential_vars
    (u0, du0), q = given(kind, parts, both, sizes, p)
    function residual(out, du, u, p, t)
        out[known] .= value(model, vcat(u, du), p[1:length(model.p)])
        out[.!known] .= node.constraints_model(u, p, t)
        return nothing
    end
    return reverse(consistent(residual, ForwardDiff.value.(du0), known, node.tspan[1], u0, p)), q
end

"The sensitivity algorithm that a layer is told to use; none leaves it to the layer."
function layersensealg(name::AbstractString)
    isempty(name) && return (;)
    name == "TrackerAdjoint" && return (; sensealg = SciMLSensitivity.TrackerAdjoint())
    name == "ForwardDiffSensitivity" && return (;)
    for known in (:BacksolveAdjoint, :InterpolatingAdjoint, :QuadratureAdjoint, :GaussAdjoint)
        name == string(known) || continue
        return (; sensealg = getfield(SciMLSensitivity, known)(; autojacvec = SciMLSensitivity.ZygoteVJP()))
    end
    throw(ArgumentError("unknown sensealg: $name for a layer of DiffEqFlux"))
end

# -- what Python calls; see bridge.jl ---------------------------------------------------------------

"A traced module as a Lux layer, whose values have these sizes."
bridge_torch_layer(kernels::Int, sizes::Int...) = hold(torchlayer(HELD[kernels], sizes))
torchlayer(k::Kernels{T}, sizes) where {T} = TorchLayer(k, zeros(T, k.np), sizes)

"Boltz's `HamiltonianNN` of an energy, put right."
bridge_hamiltonian(energy::Int) = hold(hamiltonian(HELD[energy]))

"""
    bridge_spline(T, package, kind, grid, n, trained)

Boltz's `SplineLayer` with an interpolation of a package, which is loaded for it; 0 where that is not installed.
"""
function bridge_spline(
        T::AbstractString, package::AbstractString, kind::AbstractString, grid::Integer, n::Int, trained::Bool
)
    id = Base.identify_package(PyDiffEqFlux, package)
    id === nothing && return 0
    kinds, knots = Base.invokelatest(Base.require, id), copy(array(dtype(T), grid, n))
    return hold(Base.invokelatest(() -> spline(getfield(kinds, Symbol(kind)), knots, trained)))
end

"Boltz's `TensorProductLayer`; the names of its bases are separated by blanks."
function bridge_product(T::AbstractString, names::AbstractString, out::Int, counts::Int...)
    return hold(product(dtype(T), split(names), counts, out))
end

numbertype(part::Union{TorchLayer, FromBoltz}) = eltype(part.p)
numbertype(part::Corrected) = numbertype(part.layer.model)
evaluations(part::TorchLayer) = part.kernels.nf
evaluations(part::Corrected) = evaluations(part.layer.model)
evaluations(::FromBoltz) = 0

"""
    bridge_layer(kind, parts, nparts, alg, sensealg, wanted, y0, sizes, nsizes, p, np, t0, t1, saves, nsaves, rtol, atol, ntol,
        maxiters, options, more, nmore)

Run DiffEqFlux's layer `kind`; returns the run's number, the sizes of what it returned (one state a column), how it went, and
the evaluations of its first part.
"""
function bridge_layer(
        kind::AbstractString, parts::Integer, nparts::Int, alg::Int, sensealg::AbstractString, wanted::Bool, y0::Integer,
        sizes::Integer, nsizes::Int, p::Integer, np::Int, t0::Float64, t1::Float64, saves::Integer, nsaves::Int,
        rtol::Integer, atol::Integer, ntol::Int, maxiters::Int, options::Int, more::Integer, nmore::Int
)
    name, made = Val(Symbol(kind)), Tuple(HELD[k] for k in array(Int, parts, nparts))
    T, shape, before = numbertype(first(made)), Tuple(array(Int, sizes, nsizes)), evaluations(first(made))
    # Out of place, time has to be of the state's own type.
    saving = nsaves == 0 ? (;) : (; saveat = Vector{T}(array(Float64, saves, nsaves)))
    node = layer(
        name, made, Vector{T}(array(Float64, more, nmore)), (T(t0), T(t1)),
        HELD[alg]; saving..., reltol = tolerance(rtol, ntol),
        abstol = tolerance(atol, ntol), maxiters, verbose = SILENT, layersensealg(sensealg)...,
        (options == 0 ? (;) : HELD[options])...
    )
    run = through(name, made, node, copy(array(T, y0, prod(shape))), copy(array(T, p, np)), shape; wanted,
        duals = sensealg == "ForwardDiffSensitivity")
    return hold(run), size(run.us)..., run.retcode, evaluations(first(made)) - before
end

"Write the states that a layer returned."
function bridge_layer_states(run::Int, us::Integer)
    r = HELD[run]
    copyto!(array(eltype(r.us), us, size(r.us)...), r.us)
    return nothing
end

"Write the gradient with respect to the initial state and the parameters."
function bridge_layer_gradient(run::Int, seeds::Integer, du0::Integer, nu0::Int, dp::Integer, np::Int)
    r = HELD[run]
    T = eltype(r.us)
    found = r.back(copy(array(T, seeds, size(r.us)...)))
    for (g, out) in zip(found, (array(T, du0, nu0), array(T, dp, np)))
        g === nothing ? fill!(out, 0) : copyto!(out, g)
    end
    return nothing
end

"""
    bridge_collocate(T, data, n, d, times, kernel, bandwidth, du, u)

DiffEqFlux's `collocate_data` of `n` data, `d` numbers each; `kernel` is the name of its type.
"""
function bridge_collocate(
        T::AbstractString, data::Integer, n::Int, d::Int, times::Integer, kernel::AbstractString, bandwidth::Float64,
        du::Integer, u::Integer
)
    S = dtype(T)
    found = DiffEqFlux.collocate_data(
        copy(array(S, data, d, n)), copy(array(S, times, n)), getfield(DiffEqFlux, Symbol(kernel))(), S(bandwidth)
    )
    foreach((out, values) -> copyto!(array(S, out, d, n), values), (du, u), found)
    return nothing
end
