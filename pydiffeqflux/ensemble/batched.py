"""``ensemblealg="batched"``: all trajectories as the rows of one state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..dae_problem import DAEProblem
from ..errors import PyDiffEqFluxError, UnsupportedError
from ..methods import Method
from ..problem import ODEProblem
from ..sde_problem import SDEProblem
from ..solution import Solution
from ..solve import solve
from ..state import State, map_state
from .problem import AnyProblem, seed_of

_INSTEAD = "use ensemblealg='serial', 'threads' or 'processes'"


@dataclass(frozen=True)
class Varied:
    """``func(t, y, ...)`` of one trajectory, for all of them: y, and the tensors that differ, have a row for each."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    #: For every argument and keyword: 0 where it differs between trajectories, None where it does not.
    dims: Any

    def __call__(self, t: Tensor, y: State) -> State:
        def one(t: Tensor, y: State, args: tuple[Any, ...], keywords: dict[str, Any]) -> State:
            return self.func(*args, t, y, **keywords)

        rows = t.dim() > 0
        try:
            return torch.func.vmap(one, in_dims=(0 if rows else None, 0, *self.dims))(
                t.reshape(-1) if rows else t, y, self.args, self.keywords
            )
        except PyDiffEqFluxError:
            raise
        except RuntimeError as why:
            if "vmap" not in str(why).lower() and "batch" not in str(why).lower():
                raise
            raise UnsupportedError(
                f"ensemblealg='batched' evaluates the function for all trajectories at once, by torch.func.vmap, and"
                f" that cannot be done here ({str(why).splitlines()[0]}): {_INSTEAD}."
            ) from why


def solve_batched(
    problems: Sequence[AnyProblem], method: Method | str | None, options: dict[str, Any], seed: int | None, first: int
) -> list[Solution]:
    """One solve for all, taken apart again.

    Raises:
        UnsupportedError: they differ in more than initial values and the tensors of a ``functools.partial``.
    """
    for name in ("event", "callbacks"):
        if options.get(name):
            raise UnsupportedError(f"{name} with ensemblealg='batched': {_INSTEAD}.")
    base = problems[0]
    if isinstance(base, DAEProblem):
        raise UnsupportedError(f"a DAEProblem with ensemblealg='batched': {_INSTEAD}, or batched=True for its rows.")
    for i, other in enumerate(problems):
        same = other.t_span is base.t_span or not (_timed(other) or _timed(base))
        if not same or (other.t0.value, other.t1.value) != (base.t0.value, base.t1.value):
            raise UnsupportedError(
                f"ensemblealg='batched': trajectory {first + i} has t_span=({other.t0.value}, {other.t1.value}) and the"
                f" first ({base.t0.value}, {base.t1.value}); {_INSTEAD}."
            )
    together = _joined(problems, seed, first)
    return _apart(solve(together, method, **options), len(problems))


def _timed(problem: AnyProblem) -> bool:
    return problem.t0.differentiable or problem.t1.differentiable


def _joined(problems: Sequence[AnyProblem], seed: int | None, first: int) -> AnyProblem:
    base = problems[0]
    y0 = _stacked([p.y0 for p in problems], "y0")
    if isinstance(base, SDEProblem):
        # One path for the whole batch; it depends on which trajectories are in it.
        for name in ("brownian", "seed"):
            if len({id(getattr(p, name)) for p in problems}) > 1 or (name == "brownian" and base.brownian is not None):
                raise UnsupportedError(
                    f"a {name} of each trajectory's own with ensemblealg='batched', which has one path for all: give"
                    f" EnsembleProblem(seed=...), or {_INSTEAD}."
                )
        drift = _varied([p.drift for p in problems], always=False)  # type: ignore[union-attr]
        diffusion = _varied([p.diffusion for p in problems], always=False)  # type: ignore[union-attr]
        return replace(base, y0=y0, drift=drift, diffusion=diffusion, seed=seed_of(seed or 0, first))
    assert isinstance(base, ODEProblem)  # solve_batched() refuses others
    if base.batched and base.mass_matrix is not None:
        raise UnsupportedError(f"a mass_matrix of batched rows with ensemblealg='batched': {_INSTEAD}.")
    if any(p.mass_matrix is not base.mass_matrix for p in problems):  # type: ignore[union-attr]
        raise UnsupportedError(f"mass matrices that differ with ensemblealg='batched': {_INSTEAD}.")
    func = _varied([p.func for p in problems], always=True)
    return replace(base, y0=y0, func=func, batched=True)


def _stacked(values: Sequence[Any], what: str) -> Any:
    leaves, specs = zip(*(pytree.tree_flatten(v) for v in values), strict=True)
    if any(spec != specs[0] for spec in specs) or any(
        len({(x.shape, x.dtype) if isinstance(x, Tensor) else type(x) for x in column}) > 1
        for column in zip(*leaves, strict=True)
    ):
        raise UnsupportedError(f"ensemblealg='batched': {what} differs between trajectories in structure; {_INSTEAD}.")
    return pytree.tree_unflatten([torch.stack(column) for column in zip(*leaves, strict=True)], specs[0])


def _varied(functions: Sequence[Callable[..., Any]], always: bool) -> Callable[..., Any]:
    """One function for all: the same for each, or ``functools.partial`` objects of the same with tensors that differ.

    Args:
        always: also where nothing differs; False leaves such a function to take a batch as it is.
    """
    first = functions[0]
    if all(f is first for f in functions):
        return Varied(first, (), {}, ((), {})) if always else first
    inner = getattr(first, "func", None)
    if not all(isinstance(f, functools.partial) and f.func is inner for f in functions):
        raise UnsupportedError(
            "ensemblealg='batched': the trajectories have functions of their own; make them functools.partial objects"
            f" of one function, functools.partial(f, rate=...), whose tensors may differ, or {_INSTEAD}."
        )
    given = [(f.args, f.keywords) for f in functions]  # type: ignore[attr-defined]
    leaves, specs = zip(*(pytree.tree_flatten(x) for x in given), strict=True)
    if any(spec != specs[0] for spec in specs):
        raise UnsupportedError(f"ensemblealg='batched': functools.partial objects of other arguments; {_INSTEAD}.")
    values: list[Any] = []
    dims: list[int | None] = []
    for column in zip(*leaves, strict=True):
        if all(x is column[0] for x in column):
            values.append(column[0])
            dims.append(None)
        elif isinstance(column[0], float | int | Tensor):
            # A number is not rounded by becoming a tensor, and does not widen a state in single precision either.
            rows = [x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in column]
            values.append(_stacked(rows, "a parameter"))
            dims.append(0)
        else:
            raise UnsupportedError(
                f"ensemblealg='batched': a {type(column[0]).__name__} differs between trajectories, where only tensors"
                f" and numbers may; {_INSTEAD}."
            )
    args, keywords = pytree.tree_unflatten(values, specs[0])
    return Varied(inner, args, keywords, pytree.tree_unflatten(dims, specs[0]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Row:
    """One trajectory's part of a dense output."""

    dense: Callable[[Any], State]
    index: int

    def __call__(self, t: Any) -> State:
        single = not hasattr(t, "__len__") or (isinstance(t, Tensor) and t.dim() == 0)
        return map_state(lambda x: x[self.index] if single else x[:, self.index], self.dense(t))


def _apart(sol: Solution, count: int) -> list[Solution]:
    found = []
    for i in range(count):
        found.append(
            replace(
                sol,
                ts=sol.ts if sol.ts.dim() == 1 else sol.ts[:, i],
                ys=map_state(lambda y, i=i: y[:, i], sol.ys),
                status=sol.status if sol.statuses is None else sol.statuses[i],
                statuses=None,
                dense=None if sol.dense is None else Row(sol.dense, i),
                brownian=None,
            )
        )
    return found
