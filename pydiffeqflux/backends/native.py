"""``backend="torch"``: the compiled engine where it covers the solve and pays, eager torch everywhere else.

The choice depends on nothing but the program's own course (never on a clock, nor on what is on disk), so that a program
run twice gives the same numbers twice.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
import types
import weakref
from dataclasses import dataclass
from typing import Any

from ..methods import Method
from ..problem import ODEProblem
from ..solution import Solution
from .anchor import anchor_of
from .backend import Problem, SolveOptions
from .eager.engine import EagerBackend

#: How often a function is evaluated eagerly before it is compiled: tracing and compiling cost about as much as a
#: thousand evaluations with their gradient (measured once, by hand: 0.3 to 1 s against 0.2 to 0.5 ms).
WARM_UP = 1000
#: A function that had to be traced this often changes too much between solves to be worth compiling.
TRACES = 8
#: Multiplications and additions in one evaluation's products from which on eager torch is as fast: a square layer of
#: 350 on 32 rows, of 125 on 256 (``python benchmarks/compiled_scaling.py --out DIR``). Both call the same library then;
#: going back, compiled code evaluates the function again where eager torch has kept what it needs. A convolution is not
#: the library's, and counts four times (see ``Model.flops``).
LARGE_PRODUCTS = 8_000_000
#: Entries of the state from which on eager torch is as fast, and has two cores for it.
LARGE_STATE = 1 << 18


@functools.cache
def available() -> bool:
    """Whether the compiled engine can be had."""
    return importlib.util.find_spec("llvmlite") is not None


@dataclass
class _Tally:
    evaluations: int = 0
    traces: int = 0


_tallies: weakref.WeakKeyDictionary[Any, _Tally] = weakref.WeakKeyDictionary()


class NativeBackend:
    """``backend="torch"``."""

    name = "torch"

    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        if not isinstance(problem, ODEProblem):
            return EagerBackend().solve(problem, method, options)
        found = compiled_solution(problem, method, options)
        if isinstance(found, Solution):
            return found
        solution = EagerBackend().solve(problem, method, options)
        evaluated(problem.func, solution.stats.nf)
        solution.stats.fallback = found
        return solution


def compiled_solution(problem: ODEProblem, method: Method, options: SolveOptions) -> Solution | str:
    """The solution by the compiled engine; or why eager torch is to solve this."""
    began = time.perf_counter()
    chosen = _compiled(problem, method, options, _tally(problem.func))
    if isinstance(chosen, str):
        return chosen
    from .compiled.engine import run

    return run(problem, method, options, *chosen, began)


def evaluated(func: Any, times: int) -> None:
    """Take note that ``func`` has been evaluated so often, eagerly."""
    _tally(func).evaluations += times


def _tally(func: Any) -> _Tally:
    """What is known of a function; of one that is made anew for every solve, by its code."""
    anchor = anchor_of(func)
    key = anchor.__code__ if isinstance(anchor, types.FunctionType) else anchor
    try:
        return _tallies.setdefault(key, _Tally())
    except TypeError:  # cannot be referred to weakly, or compared
        return _Tally()


def compile_at_once(func: Any) -> None:
    """Compile ``func`` at its next solve: for work that is interrupted and taken up again, and must not differ.

    What is known of it is forgotten, so that it does not matter what the program did before. (Where nothing is to be
    compiled, ``WARM_UP`` being infinite, that stays so.)
    """
    tally = _tally(func)
    tally.evaluations, tally.traces = min(WARM_UP, sys.maxsize), 0


def _compiled(problem: ODEProblem, method: Method, options: SolveOptions, tally: _Tally) -> tuple[Any, Any] | str:
    """The compiled model and the tensors it takes; or why eager torch solves this."""
    if tally.evaluations < WARM_UP and tally.traces == 0:
        return f"compiled once it has been evaluated {WARM_UP} times; so far {tally.evaluations}"
    if not available():
        return "llvmlite is not installed"
    from .compiled.coverage import uncovered
    from .compiled.engine import model_for
    from .compiled.model import known

    why = uncovered(problem, method, options)
    if why is not None:
        return why
    if problem.packed.numel() > LARGE_STATE:
        return f"a state of {problem.packed.numel()} entries is as fast in eager torch"
    if not known(problem, options):
        if tally.traces >= TRACES:
            return f"what the function computes has changed {tally.traces} times between solves"
        tally.traces += 1
    model, tensors = model_for(problem, method, options)
    if isinstance(model, str):
        return model
    if not model.pure:
        return "evaluating the function changes what it holds (a counter, say), and that happens at every evaluation"
    if model.flops > LARGE_PRODUCTS:
        return f"products and convolutions ({model.flops:,} operations, sums four times) are as fast in eager torch"
    return model, tensors
