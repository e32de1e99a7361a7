# Ctrl-C. A call that waits on a thread of its own is told by a flag: Python sets it at this address, and the next
# evaluation gives up. A call on Python's main thread keeps Python from running its signal handlers: it asks Python, now
# and then, to run them, and gives up where one of them raises.

const STOP = Ref{Ptr{Int32}}(C_NULL)
# Progress: the time of the latest evaluation goes to this address.
const CLOCK = Ref{Ptr{Float64}}(C_NULL)

bridge_clock(address::Integer) = (CLOCK[] = Ptr{Float64}(UInt(address)); nothing)

@inline function ticked(t)
    CLOCK[] == C_NULL || unsafe_store!(CLOCK[], Float64(t))
    return nothing
end

mutable struct Pulse
    main::Bool
    left::Int
    last::UInt64
end

const PULSE = Pulse(false, 0, 0)
# Look at the clock after so many evaluations, and ask Python after so many nanoseconds.
const EVALUATIONS = 16
const INTERVAL = 20_000_000

# PyGILState_Ensure, PyErr_CheckSignals, PyErr_Fetch, PyGILState_Release; and where the exception is put.
const PYTHON = fill(C_NULL, 5)

"""
    bridge_watch(stop, functions...)

The address of the flag, and those of Python's functions.
"""
function bridge_watch(stop::Integer, functions::Integer...)
    STOP[] = Ptr{Int32}(UInt(stop))
    PYTHON .= (Ptr{Cvoid}(UInt(f)) for f in functions)
    return nothing
end

"A call begins, on Python's main thread or elsewhere; or ends (false)."
function listening(main::Bool)
    PULSE.main, PULSE.left, PULSE.last = main, EVALUATIONS, main ? time_ns() : 0
    return nothing
end

@inline function givenup()
    STOP[] == C_NULL || unsafe_load(STOP[]) == 0 || throw(InterruptException())
    PULSE.left -= 1
    PULSE.left > 0 || heard()
    return nothing
end

@noinline function heard()
    PULSE.left = EVALUATIONS
    (!PULSE.main || time_ns() - PULSE.last < INTERVAL) && return nothing
    ensure, check, fetch, release, raised = PYTHON
    state = ccall(ensure, Cint, ())
    stop = ccall(check, Cint, ()) != 0
    stop && ccall(fetch, Cvoid, (Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}), raised, raised + 8, raised + 16)
    ccall(release, Cvoid, (Cint,), state)
    PULSE.last = time_ns()
    stop && throw(InterruptException())
    return nothing
end
