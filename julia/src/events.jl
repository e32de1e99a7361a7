"""
    Watch(conditions, parameters, directions, sizes)

What may end a solve: traced functions of time and state, `sizes` values each, looked at for a crossing of zero, upwards
(direction 1), downwards (-1) or both ways (0). `hit` is the number of the one that did.
"""
mutable struct Watch{T}
    const conditions::Vector{Kernels{T}}
    const parameters::Vector{Vector{T}}
    const directions::Vector{Int}
    const sizes::Vector{Int}
    hit::Int
end

function (w::Watch{T})(out, u, t, integrator) where {T}
    first = 1
    for (k, p, m) in zip(w.conditions, w.parameters, w.sizes)
        evaluate!(view(out, first:(first + m - 1)), k, u, p, t)
        first += m
    end
    return nothing
end

"What is done at a crossing: the solve ends, if it is one that counts."
struct Halt{T}
    watch::Watch{T}
end

function (h::Halt)(integrator, crossings)
    first = 1
    for (number, (direction, m)) in enumerate(zip(h.watch.directions, h.watch.sizes))
        for sign in view(crossings, first:(first + m - 1))
            if sign != 0 && (direction == 0 || sign == direction)
                h.watch.hit = number
                SciMLBase.terminate!(integrator)
                return nothing
            end
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
