"""A state shared by threads, each with a part of it: where they meet, and agree on the size of the step.

Every thread runs the same loop on its own part. All that they have to know of each other is the norm of the whole
error; with that, each takes the same decisions by itself.
"""

from __future__ import annotations

from ..lang.words import Ints, apart, ints_at, kernel, peek, poke, wide_at
from . import layout as at

#: Numbers between what two threads write to: a line of the cache.
LINE = 8
#: How often a thread looks whether the others have come before it lets somebody else have its core.
LOOKS = 1000


@apart
def together(ic: Ints, x: float) -> float:
    """The sum of ``x`` over all threads, which all call this equally often; always in the same order.

    A meeting is a count for each thread, of the meetings that it has come to, and two numbers: while some still read
    those of this meeting, others may have come to the next one already, but not to the one after that.
    """
    count = ic[at.SHARDS]
    if count <= 1:
        return x
    come, numbers = ints_at(ic[at.MEETING]), wide_at(ic[at.MEETING] + 8 * LINE * count)
    me = ic[at.SHARD]
    turn = peek(come, LINE * me)
    numbers[LINE * (2 * me + (turn & 1))] = x
    poke(come, LINE * me, turn + 1)
    total = 0.0
    for j in range(count):
        looked = 0
        while peek(come, LINE * j) <= turn:
            looked += 1
            if looked > LOOKS:
                kernel(ic[at.GIVE_WAY])
        total += numbers[LINE * (2 * j + (turn & 1))]
    return total
