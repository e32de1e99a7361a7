"""
    sensitivity(name; options...)

A sensitivity algorithm by its name, with the traced vector-Jacobian products (`autojacvec = true`: the products of the
ODEFunction take precedence). Throws an `ArgumentError` that begins with `unknown sensealg` for other names.
"""
function sensitivity(name::AbstractString; options...)
    for known in (:BacksolveAdjoint, :InterpolatingAdjoint, :QuadratureAdjoint, :GaussAdjoint, :GaussKronrodAdjoint)
        name == string(known) || continue
        return getfield(SciMLSensitivity, known)(; autojacvec = true, options...)
    end
    throw(ArgumentError("unknown sensealg: $name"))
end

"Whether the backward solve reads the forward solution's dense output."
needsdense(alg) = !SciMLSensitivity.ischeckpointing(alg)
needsdense(::SciMLSensitivity.BacksolveAdjoint) = false
