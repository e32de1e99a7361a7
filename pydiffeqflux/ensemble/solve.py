"""``solve_ensemble``: many trajectories, one after the other, all at once, or wherever an executor runs them."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..backends.once import WithoutGradient
from ..dae_problem import DAEProblem
from ..errors import (
    EnsembleError,
    InvalidArgumentError,
    NotPicklableError,
    SolveError,
    UnknownNameError,
    UnknownOptionError,
)
from ..methods import Method
from ..problem import ODEProblem
from ..sde_problem import SDEProblem
from ..solution import Solution
from ..solve import OPTIONS, solve
from ..state import State, map_state
from .batched import solve_batched
from .problem import AnyProblem, EnsembleProblem
from .solution import EnsembleSolution

ALGORITHMS = ("serial", "batched", "threads", "processes")
#: Pieces of work that an executor is handed; so few that sending one is worth it, so many that none waits long.
PIECES = 64

_NO_GRADIENT = (
    "an ensemble that was solved in other processes has no gradient: use ensemblealg='serial', 'threads' or 'batched',"
    " or solve under torch.no_grad()."
)


def solve_ensemble(
    ensemble: EnsembleProblem,
    method: Method | str | None = None,
    *,
    trajectories: int,
    ensemblealg: str | Any = "serial",
    workers: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> EnsembleSolution:
    """Solve the problem of an ensemble ``trajectories`` times.

    Args:
        ensemble: an :class:`EnsembleProblem`.
        method: as for :func:`pydiffeqflux.solve`.
        trajectories: how many.
        ensemblealg: where they are solved.

            * ``"serial"``: one after the other.
            * ``"batched"``: as the rows of one state, the function under ``torch.func.vmap``; by far the fastest where
              functions are cheap. They share their steps, unless ``per_sample=True``, and may differ in initial
              values and in the tensors of a ``functools.partial``. An SDE's noise is then one path of the batch.
            * ``"threads"``: in this process; with gradients, as the two before.
            * ``"processes"``: in new processes of this machine; without gradients. Everything is pickled, so functions
              must be importable (no lambdas), and the program's own start guarded by ``if __name__ ==
              "__main__"``.
            * any object with the ``submit`` of :class:`concurrent.futures.Executor`, over any number of machines: a
              Dask client, or the executors of Ray and mpi4py; without gradients.
        workers: how many threads or processes; all processors where None.
        batch_size: so many trajectories at a time (for ``ensemble.reduction``, and to bound memory); all where None.
        **options: as for :func:`pydiffeqflux.solve`. With ``throw=False`` failed trajectories come back with their
            status.

    Raises:
        EnsembleError: a trajectory could not be solved; says which, and why.
        NotPicklableError: something cannot be sent to another process.
        UnsupportedError: trajectories that cannot be batched.
        InvalidArgumentError, UnknownNameError, UnknownOptionError: for the arguments.

    Source: SciML's ensemble interface.

    Example:
        >>> import dataclasses, functools, torch, pydiffeqflux as pdf
        >>> def decay(t, y, rate):
        ...     return -rate * y
        >>> rates = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        >>> problem = pdf.ODEProblem(decay, torch.ones(1), (0.0, 1.0))
        >>> def vary(problem, i):
        ...     return dataclasses.replace(problem, func=functools.partial(decay, rate=rates[i]))
        >>> ensemble = pdf.EnsembleProblem(problem, vary)
        >>> sols = pdf.solve_ensemble(ensemble, trajectories=3, ensemblealg="batched", saveat=[1.0], rtol=1e-6)
        >>> sols.ys.sum().backward()
        >>> [round(x, 3) for x in rates.grad.tolist()]
        [-0.607, -0.368, -0.135]
    """
    _check(ensemble, trajectories, workers, batch_size, options)
    seed = ensemble.base_seed()
    outputs: list[Any] = []
    value, indices = ensemble.initial, range(0)
    with _solver(ensemblealg, workers) as solve_many:
        for first in range(0, trajectories, batch_size or trajectories):
            indices = range(first, min(first + (batch_size or trajectories), trajectories))
            found = solve_many(ensemble, indices, seed, method, options)
            if ensemble.reduction is None:
                outputs += found
                continue
            value, done = ensemble.reduction(value, found, indices)
            if done:
                break
    return EnsembleSolution(outputs, seed=seed, reduced=value, count=indices.stop)


Many = Callable[[EnsembleProblem, range, "int | None", Any, dict[str, Any]], list[Any]]


@contextmanager
def _solver(ensemblealg: Any, workers: int | None) -> Iterator[Many]:
    """What solves a range of trajectories."""
    if ensemblealg == "serial":
        yield _serial
    elif ensemblealg == "batched":
        yield _batched
    elif ensemblealg == "threads":
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            yield lambda *given: _threaded(pool, *given)
    elif ensemblealg == "processes":
        # Forked processes would share locks that somebody may hold, and a Julia that cannot be.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers or os.cpu_count(), context) as pool:
            yield lambda *given: _elsewhere(pool, True, *given)
    elif isinstance(ensemblealg, str):
        raise UnknownNameError("ensemblealg", ensemblealg, ALGORITHMS)
    elif callable(getattr(ensemblealg, "submit", None)):
        yield lambda *given: _elsewhere(ensemblealg, False, *given)
    else:
        raise InvalidArgumentError(
            f"ensemblealg={ensemblealg!r} is no name ({', '.join(ALGORITHMS)}) and has no submit(function, *arguments)"
            f" as a concurrent.futures.Executor has."
        )


def _check(ensemble: Any, trajectories: Any, workers: Any, batch_size: Any, options: dict[str, Any]) -> None:
    if not isinstance(ensemble, EnsembleProblem):
        raise InvalidArgumentError(f"ensemble is a {type(ensemble).__name__}; give an EnsembleProblem(problem, ...).")
    for name, number in (("trajectories", trajectories), ("workers", workers), ("batch_size", batch_size)):
        if number is None and name != "trajectories":
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidArgumentError(f"{name}={number!r} must be a positive integer.")
    for name in options:
        if name not in OPTIONS:
            own = ("trajectories", "ensemblealg", "workers", "batch_size")
            raise UnknownOptionError("solve_ensemble", name, [*OPTIONS, *own])
    if options.get("progress"):
        raise InvalidArgumentError("progress=True is for one solve; leave it out of solve_ensemble.")


@dataclass(frozen=True)
class Work:
    """Some trajectories, and how to solve each: what is sent to another process."""

    problems: Sequence[AnyProblem]
    indices: range
    method: Method | str | None
    options: dict[str, Any]
    output_func: Callable[[Any, int], Any] | None

    def __call__(self) -> list[Any]:
        return [self._one(problem, i) for problem, i in zip(self.problems, self.indices, strict=True)]

    def _one(self, problem: AnyProblem, i: int) -> Any:
        try:
            sol = solve(problem, self.method, **self.options)
        except SolveError as why:
            raise EnsembleError(i, f"trajectory {i}: {why}") from why
        return sol if self.output_func is None else self.output_func(sol, i)


def _serial(
    ensemble: EnsembleProblem, indices: range, seed: int | None, method: Any, options: dict[str, Any]
) -> list[Any]:
    problems = list(ensemble.trajectories(indices, seed))
    return Work(problems, indices, method, options, ensemble.output_func)()


def _batched(
    ensemble: EnsembleProblem, indices: range, seed: int | None, method: Any, options: dict[str, Any]
) -> list[Any]:
    problems = list(ensemble.trajectories(indices, None))
    sols = solve_batched(problems, method, options, seed, indices.start)
    keep = ensemble.output_func
    return sols if keep is None else [keep(sol, i) for sol, i in zip(sols, indices, strict=True)]


def _pieces(
    ensemble: EnsembleProblem, indices: range, seed: int | None, method: Any, options: dict[str, Any]
) -> list[Work]:
    problems = list(ensemble.trajectories(indices, seed))
    size = math.ceil(len(problems) / PIECES)
    return [
        Work(problems[k : k + size], indices[k : k + size], method, options, ensemble.output_func)
        for k in range(0, len(problems), size)
    ]


def _threaded(pool: Executor, *given: Any) -> list[Any]:
    # What is enabled in this thread is not in a new one.
    enabled = torch.is_grad_enabled()

    def run(work: Work) -> list[Any]:
        with torch.set_grad_enabled(enabled):
            return work()

    return [out for found in pool.map(run, _pieces(*given)) for out in found]


def _elsewhere(pool: Any, pickled: bool, *given: Any) -> list[Any]:
    works = _pieces(*given)
    origins = _origins(works) if torch.is_grad_enabled() else []
    options = {name: x.detach() if isinstance(x, Tensor) else x for name, x in works[0].options.items()}
    sent = [replace(work, problems=[_detached(p) for p in work.problems], options=options) for work in works]
    if pickled:
        _check_picklable(sent)
    futures = [pool.submit(run_elsewhere, work, torch.get_num_threads()) for work in sent]
    found = [out for future in futures for out in future.result()]
    return [_disowned(out, origins) for out in found] if origins else found


def run_elsewhere(work: Work, threads: int) -> list[Any]:
    """Solve, in another process; a solution comes back without its Brownian path (its seed is in the statistics)."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        found = work()
    return [replace(out, brownian=None) if isinstance(out, Solution) else out for out in found]


def _origins(works: Sequence[Work]) -> list[Tensor]:
    """What a gradient could have been wanted for: initial values, and what the functions hold on to."""
    from ..backends.common.capture import held_by

    found: dict[int, Tensor] = {}
    for work in works:
        for p in work.problems:
            held = held_by((p.drift, p.diffusion) if isinstance(p, SDEProblem) else p.func)
            for x in (p.packed, p.t0.tensor, p.t1.tensor, *held):
                if x is not None and x.requires_grad:
                    found[id(x)] = x
    return list(found.values())


def _detached(problem: AnyProblem) -> AnyProblem:
    """A tensor with a history cannot be sent."""
    span = (problem.t0.value, problem.t1.value)
    if isinstance(problem, ODEProblem):
        mass = None if problem.mass_matrix is None else problem.mass_matrix.detach()
        return replace(problem, y0=map_state(Tensor.detach, problem.y0), t_span=span, mass_matrix=mass)
    if isinstance(problem, DAEProblem):
        y0, dy0 = (map_state(Tensor.detach, state) for state in (problem.y0, problem.dy0))
        return replace(problem, y0=y0, dy0=dy0, t_span=span)
    return replace(problem, y0=problem.y0.detach(), t_span=span)


def _check_picklable(works: Sequence[Work]) -> None:
    try:
        pickle.dumps(works[0])
    except Exception as why:  # pickle raises whatever the object's own methods do
        raise NotPicklableError(
            f"ensemblealg='processes' sends the problems (and output_func) to other processes, and they cannot be"
            f" pickled: {why}. Define functions and modules at the top of a file, without lambdas, and detach tensors"
            f" that they hold; or use ensemblealg='threads'."
        ) from why


def _disowned(out: Any, origins: Sequence[Tensor]) -> Any:
    """Numbers from elsewhere, which say so where somebody differentiates them."""
    mark = lambda x: WithoutGradient.apply(_NO_GRADIENT, x, *origins)  # noqa: E731
    if isinstance(out, Solution):
        return replace(out, ys=map_state(mark, out.ys))
    if isinstance(out, Tensor) and (out.is_floating_point() or out.is_complex()):
        found: State = mark(out)
        return found
    return out
