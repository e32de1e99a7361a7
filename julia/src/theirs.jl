# DiffEqFlux's own layers, and Boltz's, around traced modules.

"""
    layer(Val(:NeuralODE), parts, more, tspan, alg; options...)

DiffEqFlux's layer of that name. `parts` are the Lux layers that it is made of, `more` its numbers.
"""
function layer(::Val{:NeuralODE}, parts, more, tspan, alg; options...)
    DiffEqFlux.NeuralODE(only(parts), tspan, alg; options...)
end

function layer(::Val{:AugmentedNDELayer}, parts, more, tspan, alg; options...)
    return DiffEqFlux.AugmentedNDELayer(DiffEqFlux.NeuralODE(only(parts), tspan, alg; options...), Int(only(more)))
end

# The module has the rows of all equations, so that the parameters of a constraint have their gradients, too.
function layer(::Val{:NeuralODEMM}, parts, more, tspan, alg; options...)
    n = isqrt(length(more))
    none(u, p, t) = similar(u, 0)
    # The state is consistent; an adjoint, whose algebraic variables jump at every saved time, has to be made so.
    initializealg = SciMLSensitivity.BrownFullBasicInit()
    return DiffEqFlux.NeuralODEMM(
        only(parts), none, tspan, reshape(more, n, n), backward(alg); initializealg, options...)
end

# A path is known at the ends of steps: one ends at every time that is saved.
function layer(::Val{:NeuralDSDE}, parts, more, tspan, alg; saveat, options...)
    return DiffEqFlux.NeuralDSDE(parts..., tspan, alg; saveat, tstops = saveat, options...)
end

function layer(::Val{:NeuralSDE}, parts, more, tspan, alg; saveat, options...)
    return DiffEqFlux.NeuralSDE(parts..., tspan, Int(only(more)), alg; saveat, tstops = saveat, options...)
end

# A history is a function of time, whose parameters follow the model's; or a state among the parameters, beside which a
# clock is known at all times.
function layer(::Val{:NeuralCDDE}, parts, more, tspan, alg; options...)
    model, past... = parts
    np = length(model.p)
    rest(p) = p[(np + 1):end]
    function history(u, p, t)
        isempty(past) || return value(only(past), [t], rest(p))
        return length(p) - np == length(u) ? rest(p) : vcat(rest(p), [oftype(u[1], t)])
    end
    solver = DelayDiffEq.MethodOfSteps(backward(alg))
    return DiffEqFlux.NeuralCDDE(Leading(model), tspan, history, more, solver; options...)
end

function layer(::Val{:NeuralDAE}, parts, more, tspan, alg; options...)
    model, constraint = parts
    algebraic(u, p, t) = value(constraint, u, p[(length(model.p) + 1):end])
    return DiffEqFlux.NeuralDAE(
        Leading(model), algebraic, tspan, backward(alg);
        differential_vars = more .!= 0, initializealg = SciMLBase.NoInit(), options...
    )
end

function layer(::Union{Val{:FFJORD}, Val{:FFJORDDistribution}}, parts, more, tspan, alg; options...)
    base = length(parts) == 1 ? nothing : Learnt(parts[2])
    return DiffEqFlux.FFJORD(
        first(parts), tspan, Tuple(Int.(more)), alg; ad = DiffEqFlux.AutoZygote(), basedist = base,
        isoutofdomain = Watched(0.0, 0), options...
    )
end

function layer(::Val{:multiple_shoot}, parts, more, tspan, alg; saveat, options...)
    return Shooting(only(parts), saveat, alg, Int(only(more)), NamedTuple(options))
end

"The same layer, of the first of the parameters that it is given."
struct Leading{L} <: LuxCore.AbstractLuxWrapperLayer{:layer}
    layer::L
end
(l::Leading)(x, p, st) = (value(l.layer, x, p[1:length(l.layer.p)]), st)

"""
    Both(all, n)

The parameters of a drift, `n` of them, and then those of a diffusion, by these names. Other than a ComponentArray it has
the same type for all models.
"""
struct Both{T, V <: AbstractVector{T}} <: AbstractVector{T}
    all::V
    n::Int
end
Base.size(b::Both) = size(getfield(b, :all))
Base.getindex(b::Both, i::Int) = getfield(b, :all)[i]
function Base.getproperty(b::Both, name::Symbol)
    all, n = getfield(b, :all), getfield(b, :n)
    return name === :drift ? all[1:n] : name === :diffusion ? all[(n + 1):end] : getfield(b, name)
end
# What a tape asks of an array of its own.
Tracker.param(b::Both) = Both(Tracker.param(b.all), b.n)
Tracker.data(b::Both) = Both(Tracker.data(b.all), b.n)
Tracker.tracker(b::Both{<:Any, <:Tracker.TrackedArray}) = Tracker.tracker(b.all)
Base.getindex(g::Tracker.Grads, b::Both) = g[Tracker.tracker(b)]
SciMLSensitivity.ArrayInterface.restructure(::Both, b::Both) = b

# -- flows ------------------------------------------------------------------------------------------

"A distribution in torch, by its traced log-density."
struct Learnt{L} <: DiffEqFlux.Distributions.ContinuousMultivariateDistribution
    density::L
end
DiffEqFlux.Distributions.logpdf(d::Learnt, z::AbstractMatrix) = value(d.density, z, d.density.p)

"What samples are made of, where a flow is run backwards: the points at hand."
struct Given{Z} <: DiffEqFlux.Distributions.ContinuousMultivariateDistribution
    z::Z
end
Base.rand(d::Given, n::Int) = d.z

"Where a solve has come to, and in how many attempted steps: a flow does not say whether its solve came to its end."
mutable struct Watched
    t::Float64
    count::Int
end
(w::Watched)(u, p, t) = (w.t = t; w.count += 1; false)

# -- multiple shooting ------------------------------------------------------------------------------

"DiffEqFlux's `multiple_shoot` as if it were a layer: of the data, one a column, it makes the groups' predictions."
struct Shooting{L, T, A, O} <: LuxCore.AbstractLuxWrapperLayer{:model}
    model::L
    times::Vector{T}
    alg::A
    size::Int
    options::O
end

# Losses are torch's: here they are nothing.
function (s::Shooting)(data, p, st)
    problem = ODEProblem{false}((u, q, t) -> value(s.model, u, q), data[:, 1], (s.times[1], s.times[end]), p)
    lost(x, y) = zero(eltype(x))
    loss, predictions = DiffEqFlux.multiple_shoot(p, data, s.times, problem, lost, lost, s.alg, s.size; s.options...)
    return isinf(loss) ? fill(convert(eltype(data), NaN), size(data, 1), 1) : reduce(hcat, predictions), st
end

# -- Boltz ------------------------------------------------------------------------------------------

"""
    Corrected(layer)

Boltz's `HamiltonianNN` with the sign that it lacks: it returns `(dH/dp, dH/dq)`, and the motion is `(dH/dp, -dH/dq)`.
"""
struct Corrected{L} <: LuxCore.AbstractLuxWrapperLayer{:layer}
    layer::L
end
function (c::Corrected)(x, p, st)
    field, later = c.layer(x, p, st)
    n = size(field, 1) ÷ 2
    return vcat(field[1:n, :], -field[(n + 1):end, :]), later
end
# Boltz looks at the shape of an energy in its first call, which Python has done.
LuxCore.initialstates(rng::AbstractRNG, c::Corrected) = (; LuxCore.initialstates(rng, c.layer)..., first_call = false)

hamiltonian(energy) = Corrected(DiffEqFlux.Boltz.Layers.HamiltonianNN{true}(energy; autodiff = DiffEqFlux.AutoZygote()))

"""
    FromBoltz(apply, p)

A layer of Boltz's as a function of states and flat parameters, whatever it is: NeuralODE is compiled for all of them at
once. Its products are those of dual numbers through Boltz's own code: Zygote's are thunks there, which SciMLSensitivity
cannot copy, or none.
"""
struct FromBoltz{T} <: LuxCore.AbstractLuxLayer
    apply::Any
    p::Vector{T}
end
LuxCore.initialparameters(::AbstractRNG, l::FromBoltz) = copy(l.p)
LuxCore.initialstates(::AbstractRNG, ::FromBoltz) = (;)
(l::FromBoltz)(x, p, st::NamedTuple) = (value(l, x, p), st)

function value(l::FromBoltz{T}, x::AbstractArray, p::AbstractVector) where {T}
    kind = Array{promote_type(T, eltype(x), eltype(p)), ndims(x)}
    return convert(kind, Base.invokelatest(l.apply, x, p))::kind
end

function ChainRulesCore.rrule(::typeof(value), l::FromBoltz{T}, x::AbstractArray, p::AbstractVector) where {T}
    n = length(x)
    at(z) = (vec(value(l, reshape(z[1:n], size(x)), z[(n + 1):end])),)
    function pullback(seed)
        seeds = reshape(Vector{T}(vec(unthunk(seed))), :, 1)
        found = bychunks(at, Vector{T}([vec(x); p]), seeds, Val(CHUNK))
        return NoTangent(), NoTangent(), reshape(found[1:n], size(x)), found[(n + 1):end]
    end
    return value(l, x, p), pullback
end

"Boltz's `TensorProductLayer`, its weight row after row as torch has it."
function product(::Type{T}, names, counts, out::Int) where {T}
    layer = DiffEqFlux.Boltz.Layers.TensorProductLayer([basis(Symbol(name), n) for (name, n) in zip(names, counts)], out)
    apply(x, p) = first(layer(x, (; weight = permutedims(reshape(p, :, out))), (;)))
    return FromBoltz(apply, zeros(T, prod(counts) * out))
end

# Boltz's Chebyshev polynomials are T_1, ..., T_n, where its documentation says T_0, ..., T_(n-1), and end outside of [-1, 1].
function basis(name::Symbol, n::Int)
    name === :Chebyshev && return DiffEqFlux.Boltz.Basis.GeneralBasisFunction{name}(chebyshev, n, 1)
    return getfield(DiffEqFlux.Boltz.Basis, name)(n)
end

"`T_(i-1)(x)`, of any x."
function chebyshev(i, x)
    before, now = x, one(x)  # T_(-1) and T_0
    for _ in 2:i
        before, now = now, 2 * x * now - before
    end
    return now
end

"""
Boltz's `SplineLayer` of numbers, made of an interpolation of this `kind`. Its parameters are the points, and behind them the
grid where it is `trained`.
"""
function spline(kind::Type, grid::Vector{T}, trained::Bool) where {T}
    n, step = length(grid), (grid[end] - grid[1]) / (length(grid) - 1)
    layer = DiffEqFlux.Boltz.Layers.SplineLayer((), grid[1], grid[end], step, kind; train_grid = Val(trained))
    function apply(x, p)
        found, _ = layer(vec(x), (; saved_points = p[1:n], grid = p[(n + 1):end]), (; grid))
        return reshape(found, size(x))
    end
    return FromBoltz(apply, zeros(T, n * (1 + trained)))
end
