# What is said of products where those of the ODEFunction take precedence: nothing is made ready for it. (`true` would have
# a configuration whose type, and so all compiled code, depends on the numbers of states and parameters.)
const NOT_ASKED = SciMLSensitivity.ZygoteVJP()

"""
    sensitivity(name; autojacvec = "traced", options...)

A sensitivity algorithm by its name. Its vector-Jacobian products are the traced ones unless `autojacvec` names another way
to get them. Throws an `ArgumentError` that begins with `unknown sensealg` for other names.
"""
function sensitivity(name::AbstractString; autojacvec = "traced", options...)
    for known in (:BacksolveAdjoint, :InterpolatingAdjoint, :QuadratureAdjoint, :GaussAdjoint, :GaussKronrodAdjoint)
        name == string(known) || continue
        make = getfield(SciMLSensitivity, known)
        return autojacvec == "traced" ? make(; autojacvec = NOT_ASKED, options...) :
               Untraced(make(; products(autojacvec)..., options...), autojacvec)
    end
    name == "ForwardSensitivity" && return SciMLSensitivity.ForwardSensitivity(; autojacvec = false)
    name == "ForwardDiffSensitivity" && return SciMLSensitivity.ForwardDiffSensitivity(; options...)
    # Exact for the computed solution; step sizes are constants for it.
    name in ("ReverseDiffAdjoint", "DiscreteAdjoint") && return SciMLSensitivity.ReverseDiffAdjoint()
    name == "TrackerAdjoint" && return SciMLSensitivity.TrackerAdjoint()
    throw(ArgumentError("unknown sensealg: $name"))
end

"How SciMLSensitivity says that."
function products(autojacvec::String)
    autojacvec == "forwarddiff" && return (; autojacvec = true)
    autojacvec == "finitediff" && return (; autojacvec = false, autodiff = false)
    autojacvec == "reversediff" && return (; autojacvec = SciMLSensitivity.ReverseDiffVJP())
    autojacvec == "tracker" && return (; autojacvec = SciMLSensitivity.TrackerVJP())
    # A right-hand side may not depend on the parameters, or not on the state.
    autojacvec == "zygote" && return (; autojacvec = SciMLSensitivity.ZygoteVJP(; allow_nothing = true))
    throw(ArgumentError("unknown autojacvec: $autojacvec"))
end

"A continuous adjoint that finds its vector-Jacobian products in the right-hand side itself, not in the traced ones."
struct Untraced{A}
    algorithm::A
    products::String
end

"Algorithms that solve anew for the gradient, on numbers that carry derivatives or with further equations."
const Through = Union{
    SciMLSensitivity.ForwardDiffSensitivity, SciMLSensitivity.ReverseDiffAdjoint, SciMLSensitivity.TrackerAdjoint
}

"Whether the backward solve reads the forward solution's dense output."
needsdense(alg) = !SciMLSensitivity.ischeckpointing(alg)
needsdense(::SciMLSensitivity.BacksolveAdjoint) = false
needsdense(::Union{Untraced, Through, SciMLSensitivity.ForwardSensitivity}) = false
