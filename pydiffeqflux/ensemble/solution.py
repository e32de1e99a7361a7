"""What an ensemble comes to: its trajectories, stacked and summed up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, ShapeError
from ..solution import Solution, Status
from ..state import State, flat_rows, leaves_of, map_state

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class EnsembleSummary:
    """Statistics over the trajectories at each saved time.

    Attributes:
        ts: ``(T,)``.
        mean, var: ``(T, *state)``; the variance is unbiased.
        levels: which quantiles.
        quantiles: for each of them ``(T, *state)``.
        count: trajectories that are in it.

    Example:
        >>> import dataclasses, torch, pydiffeqflux as pdf
        >>> still = pdf.ODEProblem(lambda t, y: 0 * y, torch.ones(1), (0.0, 1.0))
        >>> vary = lambda problem, i: dataclasses.replace(problem, y0=torch.tensor([float(i)]))
        >>> sols = pdf.solve_ensemble(pdf.EnsembleProblem(still, vary), trajectories=5, saveat=[1.0])
        >>> summary = sols.summary((0.0, 0.5))
        >>> summary.mean.item(), summary.var.item(), summary.quantiles[1].item()
        (2.0, 2.5, 2.0)
    """

    ts: Tensor
    mean: State
    var: State
    levels: tuple[float, ...]
    quantiles: list[State]
    count: int


@dataclass
class EnsembleSolution:
    """The trajectories of an ensemble: ``len(sols)``, ``sols[i]`` and iteration give their outputs.

    Attributes:
        outputs: a :class:`Solution` for each trajectory, or what ``output_func`` made of it; empty with a
            ``reduction``.
        reduced: what ``reduction`` came to.
        seed: what the seeds of the trajectories' noise were made from (None without noise).
        count: how many trajectories were solved.

    Example:
        >>> import dataclasses, torch, pydiffeqflux as pdf
        >>> decay = pdf.ODEProblem(lambda t, y: -y, torch.ones(1, dtype=torch.float64), (0.0, 1.0))
        >>> vary = lambda problem, i: dataclasses.replace(problem, y0=torch.tensor([1.0 + i]).double())
        >>> sols = pdf.solve_ensemble(pdf.EnsembleProblem(decay, vary), trajectories=3, saveat=[0.0, 1.0], rtol=1e-6)
        >>> sols.success, sols.summary().mean.flatten().tolist()[0]
        (True, 2.0)
    """

    outputs: list[Any]
    seed: int | None = None
    reduced: Any = None
    count: int = 0
    _stacked: State = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, index: int) -> Any:
        return self.outputs[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.outputs)

    @property
    def statuses(self) -> list[Status]:
        """How each trajectory ended."""
        return [sol.status for sol in self._solutions()]

    @property
    def success(self) -> bool:
        """Whether all of them reached their end."""
        return all(status.ok for status in self.statuses)

    @property
    def ts(self) -> Tensor:
        """The saved times, ``(T,)``, which all trajectories have in common.

        Raises:
            ShapeError: they have not; give ``saveat``.
        """
        sols = self._solutions()
        first = sols[0].ts
        for i, sol in enumerate(sols):
            if sol.ts.shape != first.shape or not torch.equal(sol.ts, first):
                raise ShapeError(
                    f"trajectory {i} was saved at other times ({len(sol.ts)}) than the first ({len(first)}), so they"
                    f" cannot be stacked: give saveat, and look at the statuses for those that ended early."
                )
        return first

    @property
    def ys(self) -> State:
        """The states ``(trajectories, T, *state)``, in the state's structure.

        Raises:
            ShapeError: the trajectories were saved at different times.
        """
        if self._stacked is None:
            sols = self._solutions()
            if len({id(sol.ts) for sol in sols}) > 1:
                _ = self.ts
            leaves = [[leaf for _, leaf in leaves_of(sol.ys, "ys")[0]] for sol in sols]
            columns = iter([torch.stack(column) for column in zip(*leaves, strict=True)])
            self._stacked = map_state(lambda _: next(columns), sols[0].ys)
        return self._stacked

    def summary(self, quantiles: Sequence[float] = (0.05, 0.5, 0.95)) -> EnsembleSummary:
        """Mean, variance and quantiles over the trajectories, at each saved time.

        Raises:
            InvalidArgumentError: a quantile outside [0, 1], or fewer than two trajectories.
            ShapeError: the trajectories were saved at different times.
        """
        levels = tuple(float(q) for q in quantiles)
        if any(not 0.0 <= q <= 1.0 for q in levels):
            raise InvalidArgumentError(f"quantiles={levels} must lie in [0, 1]; the median is 0.5.")
        if len(self._solutions()) < 2:
            raise InvalidArgumentError(f"a summary needs at least two trajectories; there are {len(self)}.")
        ys = self.ys
        found = [map_state(lambda y, q=q: torch.quantile(y, q, dim=0), ys) for q in levels]
        mean, var = map_state(lambda y: y.mean(0), ys), map_state(lambda y: y.var(0), ys)
        return EnsembleSummary(self.ts, mean, var, levels, found, len(self))

    def plot(
        self,
        ax: Axes | None = None,
        *,
        components: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
        band: tuple[float, float] = (0.05, 0.95),
        trajectories: int = 20,
    ) -> Axes:
        """Draw the median, the band between two quantiles, and some trajectories; return the axes.

        Args:
            ax: Matplotlib axes to draw into; new ones where None.
            components: which entries of the flattened state; the first five where None.
            labels: a name for each of them.
            band: the two quantiles.
            trajectories: how many are drawn as thin lines.
        """
        import matplotlib.pyplot as plt

        summary = self.summary((band[0], 0.5, band[1]))
        low, middle, high = (flat_rows(q) for q in summary.quantiles)
        chosen = list(range(min(middle.shape[1], 5))) if components is None else list(components)
        if labels is not None and len(labels) != len(chosen):
            raise InvalidArgumentError(f"labels={list(labels)}: {len(chosen)} components are drawn, give as many.")
        if any(not -middle.shape[1] <= k < middle.shape[1] for k in chosen):
            raise InvalidArgumentError(f"components={chosen}: the state has {middle.shape[1]} components.")
        if ax is None:
            _, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        ts = summary.ts.detach().cpu().double()
        thin = [flat_rows(sol.ys) for sol in self.outputs[:trajectories]]
        for k, index in enumerate(chosen):
            name = labels[k] if labels is not None else f"$y_{{{index % middle.shape[1]}}}$"
            (line,) = ax.plot(ts, middle[:, index], lw=2.0, label=name)
            colour = line.get_color()
            ax.fill_between(ts, low[:, index], high[:, index], color=colour, alpha=0.2, lw=0)
            for states in thin:
                ax.plot(ts, states[:, index], lw=0.5, alpha=0.35, color=colour)
        ax.set_xlabel("t")
        ax.set_ylabel("y(t)")
        ax.spines[["top", "right"]].set_visible(False)
        if len(chosen) > 1 or labels is not None:
            ax.legend(frameon=False, fontsize="small")
        return ax

    def _solutions(self) -> list[Solution]:
        if not self.outputs:
            raise InvalidArgumentError("a reduction has used the trajectories up: its result is in reduced.")
        for out in self.outputs:
            if not isinstance(out, Solution):
                raise InvalidArgumentError(
                    f"output_func kept a {type(out).__name__} of each trajectory, not its Solution: iterate over the"
                    f" outputs instead."
                )
        return self.outputs
