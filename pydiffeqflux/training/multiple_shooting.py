"""Multiple shooting as a loss: the data are cut into groups, and each is solved from its own first datum."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, ShapeError
from ..interpolation import check_knots
from ..layers.calling import as_rhs, takes_time
from ..layers.solver_layer import LEAN, check_callable, check_options
from ..methods import Method, resolve
from ..problem import ODEProblem
from ..solve import solve
from .segments import Segments

Loss = Callable[[Tensor, Tensor], Tensor]


class MultipleShot(NamedTuple):
    """What :func:`multiple_shoot` returns."""

    loss: Tensor  #: of all groups, with the continuity penalty
    predictions: list[Tensor]  #: for each group ``(k, *state)``, its first state (a datum) included


def group_ranges(count: int, group_size: int) -> list[range]:
    """Indices of the groups: each begins with the last one of the group before, and the last group may be shorter.

    Raises:
        InvalidArgumentError: a group size below two, or above the number of data.

    Example:
        >>> from pydiffeqflux import group_ranges
        >>> group_ranges(10, 5)
        [range(0, 5), range(4, 9), range(8, 10)]
    """
    if isinstance(group_size, bool) or not isinstance(group_size, int) or not 2 <= group_size <= count:
        raise InvalidArgumentError(
            f"group_size={group_size!r} must be an integer from 2 to {count}, the number of data."
        )
    return [range(i, min(count, i + group_size)) for i in range(0, count - 1, group_size - 1)]


def sum_of_squares(data: Tensor, prediction: Tensor) -> Tensor:
    return (data - prediction).abs().square().sum()


def sum_of_gaps(end: Tensor, start: Tensor) -> Tensor:
    return (end - start).abs().sum()


def multiple_shoot(
    model: Callable[..., Any],
    data: Tensor,
    t: Any,
    loss: Loss | None = None,
    method: Method | str = "tsit5",
    group_size: int = 5,
    *,
    continuity_loss: Loss | None = None,
    continuity_term: float = 100.0,
    time_dependent: bool | None = None,
    **options: Any,
) -> MultipleShot:
    """The loss of many short solves, each of which starts from a datum, and what keeps them together.

    On a long oscillating series one solve from the first datum has a loss full of local minima; short ones have not.
    All groups are solved as one batch.

    Args:
        model: ``model(y)`` or ``model(t, y)``, or a layer with a right-hand side, such as :class:`NeuralODE`. It is
            called with the groups as a further first dimension, ``(groups, *state)``, and ``t`` as
            ``(groups, 1, ..., 1)``.
        data: ``(n, *state)``, time first.
        t: ``(n,)``, increasing.
        loss: ``loss(data, prediction)`` of each group; the sum of squared differences where None.
        method: as for :func:`pydiffeqflux.solve`.
        group_size: data a group; neighbours share one.
        continuity_loss: ``continuity_loss(end, start)`` of a group's last state and the next one's first; the sum
            of absolute differences where None.
        continuity_term: its weight.
        **options: further keyword arguments of :func:`pydiffeqflux.solve`. A ``dt`` is in units of ``t``.

    Raises:
        InvalidArgumentError: for ``group_size`` and ``continuity_term``.
        InvalidTimesError, ShapeError: times that do not go up, or not one for each datum.
        UnknownOptionError: an option that ``solve`` does not take.

    Source: Bock & Plitt, "A multiple shooting algorithm for direct solution of optimal control problems" (1984);
    Turan & Jaschke, arXiv:2109.06786; DiffEqFlux.jl's function of this name.

    Example:
        >>> import torch, pydiffeqflux as pdf
        >>> t = torch.linspace(0, 3, 13)
        >>> data = torch.stack([t.cos(), -t.sin()], -1)
        >>> turn = lambda y: y @ torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        >>> shot = pdf.multiple_shoot(turn, data, t, group_size=4, rtol=1e-6)
        >>> len(shot.predictions), bool(shot.loss < 1e-3)
        (4, True)
    """
    func = getattr(model, "rhs", None) or _rhs(model, time_dependent)
    check_options("multiple_shoot", options, ("continuity_loss", "continuity_term", "time_dependent"))
    if "saveat" in options:
        raise InvalidArgumentError("saveat was given, but the groups are compared at the data's own times, t.")
    if not isinstance(data, Tensor) or data.dim() < 2:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ShapeError(f"data is {got}; a series of states is a tensor (n, *state), time first.")
    if not isinstance(continuity_term, numbers.Real) or not continuity_term >= 0:
        raise InvalidArgumentError(f"continuity_term={continuity_term!r} must be a number >= 0.")
    ranges = group_ranges(len(data), group_size)
    times = check_knots(t, len(data), 2, "t").to(data.real)
    if options.get("backend") == "diffeqflux":
        paths = _theirs(Groups(func, tuple(times.tolist()), group_size, tuple(ranges)), data, method, options)
    else:
        paths = _side_by_side(func, data, times, ranges, group_size, {**options, "method": resolve(method)})
    predictions = [path[: len(r)] for path, r in zip(paths, ranges, strict=True)]
    compare, join = loss or sum_of_squares, continuity_loss or sum_of_gaps
    total = torch.stack([compare(data[r.start : r.stop], p) for r, p in zip(ranges, predictions, strict=True)]).sum()
    for before, r in zip(predictions, ranges[1:], strict=False):
        total = total + continuity_term * join(before[-1], data[r.start])
    return MultipleShot(total, predictions)


def _side_by_side(
    func: Callable[[Any, Any], Any],
    data: Tensor,
    times: Tensor,
    ranges: list[range],
    group_size: int,
    solver: dict[str, Any],
) -> list[Tensor]:
    """All groups as one batch; the last one may come out longer."""
    starts = torch.tensor([r.start for r in ranges], device=data.device)
    steps = times.diff()
    # The last group may be shorter: it is solved a little beyond the data, where nothing is compared.
    missing = len(ranges) * (group_size - 1) - len(steps)
    segments = Segments(times[starts], torch.cat([steps, steps[-1:].expand(missing)]).reshape(len(ranges), -1))
    if solver.get("dt") is not None:  # from time to intervals
        solver["dt"] = solver["dt"] / float(steps.median())
    nodes = data[starts]
    paths, _ = segments.solve(func, nodes, solver)
    return list(torch.cat([nodes[:, None], paths], 1))


@dataclass(frozen=True)
class Groups:
    """The right-hand side of groups, by which DiffEqFlux's function of this name is told."""

    model: Callable[[Any, Any], Any]
    times: tuple[float, ...]
    size: int
    ranges: tuple[range, ...]
    theirs: ClassVar[str] = "multiple_shoot"

    def __call__(self, t: Any, y: Any) -> Any:
        return self.model(t, y)


def _theirs(groups: Groups, data: Tensor, method: Method | str, options: dict[str, Any]) -> list[Tensor]:
    """The same by DiffEqFlux, one group after the other."""
    problem = ODEProblem(groups, data, (groups.times[0], groups.times[-1]))
    found = solve(problem, method, **{"saveat": list(groups.times), **LEAN, **options}).ys
    return list(found.split([len(r) for r in groups.ranges]))


def _rhs(model: Any, time_dependent: bool | None) -> Callable[[Any, Any], Any]:
    check_callable(model, "model(y) or model(t, y), or a layer such as NeuralODE")
    return as_rhs(model, takes_time(model) if time_dependent is None else time_dependent)
