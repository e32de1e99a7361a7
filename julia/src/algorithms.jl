"""
    algorithm(text)

The solver that `text` names, as one would write it in Julia: `"Tsit5"`, `"Rodas5P()"`, `"AutoTsit5(Rosenbrock23())"`,
`"KenCarp4(max_newton_iter = 20)"`. Only names of solvers, calls and literal arguments are understood; nothing else is
evaluated. Throws an `ArgumentError` that begins with `unknown solver` for a name that is none.
"""
function algorithm(text::AbstractString)
    found = named(Meta.parse(text))
    # The part that defines it may have been loaded a moment ago, after this function was called.
    found isa Type && (found = Base.invokelatest(found))
    found isa SciMLBase.AbstractDEAlgorithm && return found
    throw(ArgumentError("unknown solver: $text is not a solver but a $(typeof(found))"))
end

named(x::Union{Number, Bool, String, QuoteNode}) = x
named(x::Symbol) = x === :nothing ? nothing : lookup(x)
function named(x::Expr)
    x.head === :call || throw(ArgumentError("unknown solver: $x is not a call"))
    positional, keywords = Any[], Pair{Symbol, Any}[]
    for a in x.args[2:end]
        if a isa Expr && a.head === :parameters
            append!(keywords, [kw.args[1] => named(kw.args[2]) for kw in a.args])
        elseif a isa Expr && a.head === :kw
            push!(keywords, a.args[1] => named(a.args[2]))
        else
            inner = named(a)
            push!(positional, inner isa Type ? Base.invokelatest(inner) : inner)
        end
    end
    return Base.invokelatest(lookup(x.args[1]), positional...; keywords...)
end

# The parts of OrdinaryDiffEq that define solvers, the common ones first. A part is loaded when its turn comes in the
# search for a name.
const PARTS = (
    :Tsit5, :Verner, :Rosenbrock, :BDF, :Default, :LowOrderRK, :HighOrderRK, :SDIRK, :FIRK, :AdamsBashforthMoulton,
    :ExplicitRK, :Extrapolation, :Feagin, :LowStorageRK, :Nordsieck, :PDIRK, :PRK, :QPRK, :SSPRK, :StabilizedIRK,
    :StabilizedRK
)

"A part by its name, loaded if need be; nothing where it is not installed."
function part(name::Symbol)
    id = Base.identify_package(PyDiffEqFlux, string(:OrdinaryDiffEq, name))
    return id === nothing ? nothing : Base.invokelatest(Base.require, id)
end

function lookup(name::Symbol)
    for label in PARTS
        m = part(label)
        (m === nothing || !Base.invokelatest(isdefined, m, name)) && continue
        found = Base.invokelatest(getfield, m, name)
        issolver(name, found) && return found
    end
    throw(ArgumentError("unknown solver: $name"))
end

issolver(::Symbol, x::Type) = x <: SciMLBase.AbstractDEAlgorithm && !isabstracttype(x)
issolver(name::Symbol, x) = x isa Function && startswith(string(name), "Auto")

"""
    algorithms()

The names of all solvers that [`algorithm`](@ref) knows.
"""
function algorithms()
    found = Set{String}()
    for label in PARTS
        m = part(label)
        m === nothing && continue
        for name in Base.invokelatest(names, m)
            Base.invokelatest(isdefined, m, name) || continue
            issolver(name, Base.invokelatest(getfield, m, name)) && push!(found, string(name))
        end
    end
    return sort!(collect(found))
end

"Whether a solver wants the Jacobian of the right-hand side."
needsjacobian(alg) = OrdinaryDiffEq.OrdinaryDiffEqCore.isimplicit(alg)
needsjacobian(alg::OrdinaryDiffEq.OrdinaryDiffEqCore.CompositeAlgorithm) = any(needsjacobian, alg.algs)

"Whether a solver wants the Jacobian, takes a mass matrix, and is one for fully implicit equations."
function abilities(alg)
    (
        needsjacobian(alg), OrdinaryDiffEq.OrdinaryDiffEqCore.is_mass_matrix_alg(alg), alg isa
                                                                                       SciMLBase.AbstractDAEAlgorithm
    )
end

"""
    backward(alg)

The same solver for an adjoint equation, whose right-hand side takes no dual numbers: what it cannot get from the traced
functions (the derivative in time, for one) it gets from finite differences.
"""
backward(alg) = hasproperty(alg, :autodiff) ? SciMLBase.remake(alg; autodiff = AutoFiniteDiff()) : alg
function backward(alg::OrdinaryDiffEq.OrdinaryDiffEqCore.CompositeAlgorithm)
    return OrdinaryDiffEq.OrdinaryDiffEqCore.CompositeAlgorithm(map(backward, alg.algs), alg.choice_function)
end
