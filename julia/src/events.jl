"""
    Watch(conditions)

Events: traced functions of time and state, looked at for a crossing of zero, upwards (direction 1), downwards (-1) or both
ways (0). One that `halts` ends the solve, and `hit` is then its number; of the others, number and time are `seen`.
"""
mutable struct Watch{T}
    const conditions::Vector{Kernels{T}}
    const parameters::Vector{Vector{T}}
    const directions::Vector{Int}
    const halts::Vector{Bool}
    const sizes::Vector{Int}
    const seen::Vector{Tuple{Int, Float64}}
    hit::Int
end

function Watch(ks::Vector{Kernels{T}}) where {T}
    n = length(ks)
    return Watch(
        ks, [zeros(T, k.np) for k in ks], zeros(Int, n), ones(Bool, n), [k.m for k in ks], Tuple{Int, Float64}[], 0)
end

function (w::Watch{T})(out, u, t, integrator) where {T}
    first = 1
    for (k, p, m) in zip(w.conditions, w.parameters, w.sizes)
        evaluate!(view(out, first:(first + m - 1)), k, u, p, t)
        first += m
    end
    return nothing
end

"What is done at a crossing, if it is one that counts."
struct Halt{T}
    watch::Watch{T}
end

function (h::Halt)(integrator, crossings)
    w, first = h.watch, 1
    for (number, m) in enumerate(w.sizes)
        for sign in view(crossings, first:(first + m - 1))
            (sign == 0 || w.directions[number] == -sign) && continue
            if w.halts[number]
                w.hit = number
                SciMLBase.terminate!(integrator)
                return nothing
            end
            push!(w.seen, (number, Float64(integrator.t)))
        end
        first += m
    end
    SciMLBase.derivative_discontinuity!(integrator, false)
    return nothing
end

"""
    callback(watch, points)

The callback that ends a solve at the first crossing; `points` are looked at between two steps.
"""
function callback(watch::Watch, points::Int)
    return SciMLBase.VectorContinuousCallback(
        watch, Halt(watch), sum(watch.sizes); interp_points = points, save_positions = (false, false)
    )
end
