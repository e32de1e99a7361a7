"""The native backend: any torch function, solved and differentiated in eager torch."""

from __future__ import annotations

import time

from ...dde_problem import DDEProblem
from ...methods import Method
from ...problem import ODEProblem
from ...sensealg import DiscreteAdjoint
from ...solution import Solution
from ..backend import Problem, SolveOptions
from ..common.autocast import in_own_precision
from ..common.choose import choose_sensealg
from ..common.failure import failure
from ..common.tolerances import Tolerances, rms_norm
from . import joint
from .catalogue import stepper_for
from .stepper import Stepper


class EagerBackend:
    """``backend="torch"``."""

    name = "torch"

    @in_own_precision
    def solve(self, problem: Problem, method: Method, options: SolveOptions) -> Solution:
        began = time.perf_counter()
        if isinstance(problem, DDEProblem):
            from .delay.checks import check

            check(problem, method, options)
        sensealg, reason = choose_sensealg(problem, method, options)
        tol = Tolerances(options.rtol, options.atol, options.norm or rms_norm)
        second_order = isinstance(sensealg, DiscreteAdjoint) and sensealg.second_order
        stepper = self.stepper(problem, method, tol, second_order=second_order)
        if options.per_sample:
            from . import per_sample

            assert isinstance(problem, ODEProblem)  # solve() refuses others
            solution, message = per_sample.solve(problem, stepper, sensealg, options)
        else:
            solution, message = joint.solve(problem, method, stepper, sensealg, options)
        stats = solution.stats
        stats.time = time.perf_counter() - began
        stats.backend, stats.method = self.name, str(method)
        stats.sensealg, stats.reason = ("none" if sensealg is None else sensealg.name), reason
        if options.throw and not solution.status.ok:
            last = None if options.per_sample else float(solution.ts[-1])  # rows fail at times of their own
            raise failure(solution.status, message, last, (problem.t0.value, problem.t1.value), method)
        return solution

    def stepper(self, problem: Problem, method: Method, tol: Tolerances, *, second_order: bool) -> Stepper:
        """What takes the steps."""
        return stepper_for(method, tol, batched=problem.batched, second_order=second_order)
