"""Drawing a solution (Matplotlib is imported only here and only when something is drawn)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InvalidArgumentError
from .state import State, flat_rows, map_state

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_solution(
    times: Tensor,
    states: State,
    dense: Callable[[Any], State] | None,
    ax: Axes | None,
    components: Sequence[int] | None,
    labels: Sequence[str] | None,
    points: int,
) -> Axes:
    """See :meth:`pydiffeqflux.Solution.plot`."""
    import matplotlib.pyplot as plt

    saved = flat_rows(states)
    ts = times.detach().cpu().double()
    count = saved.shape[1]
    if ts.dim() == 1:
        ts = ts.unsqueeze(1).expand(-1, count)
    else:  # rows that stepped for themselves: each component has its row's times
        ts = ts[:, _row_of_each(states)]
    chosen = list(range(min(count, 10))) if components is None else list(components)
    for index in chosen:
        if not -count <= index < count:
            raise InvalidArgumentError(f"components={chosen}: the state has {count} components, so {index} is not one.")
    if labels is not None and len(labels) != len(chosen):
        raise InvalidArgumentError(f"labels={list(labels)}: {len(chosen)} components are drawn, give as many labels.")
    if ax is None:
        _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    if dense is not None and len(ts) > 1:
        first, last = float(ts[0, 0]), float(ts[-1, ts[-1].sub(ts[0, 0]).abs().argmax()])
        fine = torch.linspace(first, last, points, dtype=torch.float64)
        with torch.no_grad():
            curve, at = flat_rows(dense(fine)), fine.unsqueeze(1).expand(-1, count)
    else:
        curve, at = saved, ts
    marks = len(ts) <= 60
    for k, index in enumerate(chosen):
        label = labels[k] if labels is not None else f"$y_{{{index % count}}}$"
        (line,) = ax.plot(at[:, index], curve[:, index], lw=1.6, label=label)
        if marks:
            ax.plot(ts[:, index], saved[:, index], ".", ms=5, color=line.get_color())
    ax.set_xlabel("t")
    ax.set_ylabel("y(t)")
    ax.spines[["top", "right"]].set_visible(False)
    if len(chosen) > 1 or labels is not None:
        ax.legend(frameon=False, fontsize="small", ncols=2 if len(chosen) > 5 else 1)
    return ax


def _row_of_each(states: State) -> Tensor:
    """The row of the batch that each component of the flattened state belongs to."""

    def numbered(leaf: Tensor) -> Tensor:
        rows = torch.arange(leaf.shape[1], device=leaf.device).reshape(-1, *[1] * (leaf.dim() - 2))
        return rows.to(leaf.dtype).expand_as(leaf[:1])

    # A complex component is drawn as two reals, of which the second would be the imaginary part 0.
    return flat_rows(map_state(lambda leaf: _real_twin(numbered(leaf)), states))[0].long()


def _real_twin(x: Tensor) -> Tensor:
    return torch.complex(x.real, x.real) if x.is_complex() else x
