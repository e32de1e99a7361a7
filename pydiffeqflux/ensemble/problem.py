"""``EnsembleProblem``: one problem, and how each of many trajectories differs from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..dae_problem import DAEProblem
from ..errors import InvalidArgumentError
from ..problem import ODEProblem
from ..sde_problem import SDEProblem

AnyProblem = ODEProblem | SDEProblem | DAEProblem


@dataclass(frozen=True)
class EnsembleProblem:
    """Many solves of one problem. See :func:`solve_ensemble`.

    Args:
        problem: what all trajectories have in common.
        prob_func: ``prob_func(problem, i)`` makes the problem of trajectory i; ``dataclasses.replace(problem,
            y0=...)`` does, or (for parameters) ``dataclasses.replace(problem, func=functools.partial(f, rate=...))``.
            Called here, in order, so that random numbers are reproducible by ``torch.manual_seed``. None: they differ
            in their noise only.
        output_func: ``output_func(solution, i)`` is kept of a trajectory; None keeps the whole :class:`Solution`. It
            runs where the trajectory is solved.
        reduction: ``reduction(value, outputs, indices)`` returns ``(value, done)``: called with the outputs of every
            batch of trajectories, which are then forgotten; ``done=True`` ends the ensemble.
        initial: the ``value`` of the first call of ``reduction``.
        seed: of an :class:`SDEProblem`: trajectory i sees the noise of a seed made of this one and i, whatever order
            they are solved in (a seed that ``prob_func`` set stays). None takes the problem's own, or draws one.

    Raises:
        InvalidArgumentError: an argument is not callable, or ``problem`` is no problem.

    Source: SciML's ``EnsembleProblem``.

    Example:
        >>> import dataclasses, torch, pydiffeqflux as pdf
        >>> decay = pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0))
        >>> starts = torch.linspace(1.0, 2.0, 5).unsqueeze(1)
        >>> vary = lambda problem, i: dataclasses.replace(problem, y0=starts[i])
        >>> sols = pdf.solve_ensemble(pdf.EnsembleProblem(decay, vary), trajectories=5, saveat=[0.0, 1.0])
        >>> sols.ys.shape
        torch.Size([5, 2, 1])
    """

    problem: AnyProblem
    prob_func: Callable[[Any, int], Any] | None = None
    output_func: Callable[[Any, int], Any] | None = None
    reduction: Callable[[Any, list[Any], range], tuple[Any, bool]] | None = None
    initial: Any = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.problem, AnyProblem):
            raise InvalidArgumentError(
                f"problem is a {type(self.problem).__name__}; give the ODEProblem, SDEProblem or DAEProblem that they"
                f" share."
            )
        for name in ("prob_func", "output_func", "reduction"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise InvalidArgumentError(f"{name}={given!r} is not callable; give a function, or None.")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise InvalidArgumentError(f"seed={self.seed!r} must be an integer >= 0, or None.")

    def base_seed(self) -> int | None:
        """The seed that those of the trajectories are made from; None where nothing is random."""
        if not isinstance(self.problem, SDEProblem):
            return None
        if self.seed is not None:
            return self.seed
        if self.problem.seed is not None:
            return int(self.problem.seed)
        from ..backends.common.path import new_seed

        return new_seed()

    def trajectories(self, indices: range, seed: int | None) -> Iterator[AnyProblem]:
        """The problems of these trajectories.

        Raises:
            InvalidArgumentError: ``prob_func`` returned something else.
        """
        for i in indices:
            made = self.problem if self.prob_func is None else self.prob_func(self.problem, i)
            if type(made) is not type(self.problem):
                raise InvalidArgumentError(
                    f"prob_func returned a {type(made).__name__} for trajectory {i}; it must return a"
                    f" {type(self.problem).__name__}, such as dataclasses.replace(problem, y0=...)."
                )
            own = isinstance(made, SDEProblem) and (made.brownian is not None or made.seed != self.problem.seed)  # type: ignore[union-attr]
            yield made if seed is None or own else replace(made, seed=seed_of(seed, i))  # type: ignore[arg-type]


def seed_of(seed: int, index: int) -> int:
    """The seed of one trajectory: independent streams of one number (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)[0] >> np.uint64(2))
