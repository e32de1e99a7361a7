"""What stands where in the flat arrays that a loop gets: fixed numbers, seen by the compiler as constants."""

from __future__ import annotations

# -- the method: integers, then one flat table ``tab`` ------------------------------------------
#
# tab: nodes (S), weights of the stages (S rows of S), solution weights (S), two error estimates (S each), and the
# interpolant (S rows of degree), with S = stages + extra stages.
N = 0  #: entries of the state
STAGES = 1
EXTRA = 2  #: stages that only the interpolant needs
FSAL = 3
ERRORS = 4  #: how many error estimates: 0 (fixed steps), 1, or 2 to be blended
DEGREE = 5  #: of the interpolant
AT_END = 6  #: the extra stage whose state is the new point, or -1

# -- the solve ----------------------------------------------------------------------------------
SAVES = 7
KEEP = 8  #: every step is kept, or only the last one
MAX_STEPS = 9
DENSE = 10  #: the interpolant is wanted on every step
CAPACITY = 11  #: how many steps the buffers hold
PARAMS = 12  #: how many parameters are differentiated; -1: neither they nor time
TIMED = 13  #: times carry gradients
BASE = 14  #: the step that the buffers begin with
FAMILY = 15  #: 0: explicit Runge-Kutta, 1: Rosenbrock, whose slots for slopes hold the stages u and, last, f
CARRY = 16  #: the slot that holds f at the start of the step
JACOBIAN = 17  #: the address of the kernel of the Jacobian
SPACE = 18  #: where in the work space the Jacobian and its factors lie
PART_1, PART_2, PART_END = 19, 20, 21  #: the norm is the largest of those of the entries up to each of these
SHARDS, SHARD = 22, 23  #: how many threads share the state (0 or 1: none), each with as many entries; which this is
MEETING, GIVE_WAY = 24, 25  #: addresses: where they meet (see ``meeting``), and of a function that lets others run
WATCH = 26  #: address of what the conditions of events are looked at with (see ``watch``), or 0
INTS = 27

T0, T1, DT, DT_MIN, DT_MAX = 0, 1, 2, 3, 4  #: DT: NaN where it was not given
SAFETY, FACTOR_MIN, FACTOR_MAX = 5, 6, 7
#: Exponents of the error ratios of this step and the two before, and of a rejected step's.
POWER, POWER_1, POWER_2, POWER_REJECTED, ORDER_UP = 8, 9, 10, 11, 12
FLOATS = 13

# -- where the loop stands, kept between two calls ----------------------------------------------
STARTED, ACCEPTED, REJECTED, EVALUATIONS, NEXT_SAVE, WHY, STUCK, AFTER_REJECTION = 0, 1, 2, 3, 4, 5, 6, 7
JACOBIANS, JACOBIAN_OF = 8, 9  #: how many; 1 + the number of the step whose one the work space holds
CHANGED = 10  #: a condition of an event has changed its sign in the last step
STATE_INTS = 11
NOW, SIZE, PREVIOUS, BEFORE = 0, 1, 2, 3
STATE_FLOATS = 4

# -- how a call ends ----------------------------------------------------------------------------
DONE, FULL, OUT_OF_STEPS, UNDERFLOW, NON_FINITE, NON_FINITE_SLOPE, NON_FINITE_STATE, EVENT = 0, 1, 2, 3, 4, 5, 6, 7
