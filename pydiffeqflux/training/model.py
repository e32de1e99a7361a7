"""What is fitted: a network in scaled units, an initial state, and the way back to data units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backends.native import compile_at_once
from ..errors import InvalidArgumentError, InvalidTimesError, UnknownNameError
from ..layers.calling import Autonomous
from ..layers.neural_ode import NeuralODE
from ..problem import ODEProblem
from ..solution import Solution
from ..solve import solve
from .series import Series
from .smoothing import smooth

#: Networks of this size cost the same in either precision on a CPU, and the fit is then reproducible to more digits.
DTYPE = torch.float64


@dataclass(frozen=True)
class Scaling:
    """Data units to the units that the network sees, and back.

    A state is replaced by its logarithm where ``logs`` says so, then shifted and divided to mean 0 and
    standard deviation 1; times count from the first one in units of ``time_unit``.
    """

    logs: tuple[bool, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    time_start: float
    time_unit: float

    def states(self, values: np.ndarray[Any, Any]) -> Tensor:
        """``(n, d)`` in data units to scaled units."""
        logged = np.where(self.logs, np.log(np.where(self.logs, values, 1.0)), values)
        return torch.as_tensor((logged - np.array(self.means)) / np.array(self.stds), dtype=DTYPE)

    def values(self, states: Tensor) -> Tensor:
        """``(..., d)`` in scaled units back to data units; differentiable."""
        raw = states * states.new_tensor(self.stds) + states.new_tensor(self.means)
        return torch.where(torch.tensor(self.logs), raw.exp(), raw)

    def times(self, times: Any) -> Tensor:
        return (torch.as_tensor(times, dtype=DTYPE) - self.time_start) / self.time_unit


def scaling_of(series: Series, transform: str) -> tuple[Scaling, Tensor, Tensor]:
    """The scaling of a series, and smoothed ``(state, rate)`` pairs in scaled units to start training from.

    The unit of time is such that the scaled states change at a rate of 1 (root mean square), which is
    what a freshly initialised network puts out.

    Args:
        transform: ``"auto"`` takes logarithms of the states that are positive throughout, ``"log"`` of
            all (they must be positive), ``"none"`` of none.

    Raises:
        UnknownNameError: another transform.
        InvalidArgumentError: ``"log"`` with a state that is not positive.
    """
    if transform not in ("auto", "log", "none"):
        raise UnknownNameError("transform", transform, ["auto", "log", "none"])
    positive: NDArray[np.bool_] = np.all(series.values > 0, axis=0)
    if transform == "log" and not positive.all():
        name = series.state_names[int(np.argmin(positive))]
        raise InvalidArgumentError(f"transform='log': state {name!r} has values that are not positive; use 'auto'.")
    logs = positive if transform != "none" else np.zeros_like(positive)
    logged = np.where(logs, np.log(np.where(logs, series.values, 1.0)), series.values)
    means, stds = logged.mean(axis=0), logged.std(axis=0)
    stds = np.where(stds > 1e-12 * np.maximum(1.0, np.abs(means)), stds, 1.0)  # a constant state stays as it is
    count = min(8 * (len(series) - 1) + 1, 512)
    at = np.linspace(series.times[0], series.times[-1], count)
    levels, rates = smooth(series.times, (logged - means) / stds, at)
    speed = float(np.sqrt(np.mean(rates**2)))
    span = float(series.times[-1] - series.times[0])
    unit = 1.0 / max(speed, 1.0 / span)  # a series that hardly moves: its whole span is one unit
    scaling = Scaling(
        tuple(logs.tolist()),
        tuple(means.tolist()),
        tuple(stds.tolist()),
        float(series.times[0]),
        unit,
    )
    return scaling, torch.as_tensor(levels, dtype=DTYPE), torch.as_tensor(rates * unit, dtype=DTYPE)


def network(size: int, width: int, depth: int) -> nn.Sequential:
    """``depth`` hidden tanh layers of ``width``, and a linear last one: bounded, so no solution blows up."""
    layers: list[nn.Module] = []
    inputs = size
    for _ in range(depth):
        layers += [nn.Linear(inputs, width, dtype=DTYPE), nn.Tanh()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, size, dtype=DTYPE))


class FittedODE(nn.Module):
    """A neural ODE together with its initial state and units; made by ``fit``, read back by ``load``.

    ``dz/ds = net(z)`` for the scaled observed states and ``augment`` further states that nobody observed
    (they start at a trained value too): an augmented neural ODE (Dupont, Doucet & Teh 2019,
    arXiv:1904.01681). In the plane, solutions of an autonomous equation cannot cross; observed ones can,
    where something unobserved differs.

    Args:
        scaling: units of the data.
        state_names: the observed states.
        times: the times of the series, in data units.
        width, depth, augment: size of the network; how many unobserved states.
        solver: keyword arguments of :class:`pydiffeqflux.NeuralODE`: method, rtol, atol, backend, ...

    Shapes:
        ``module()`` is ``(n, d)``, the trajectory in data units at the series' own times;
        ``module(times)`` is ``(len(times), d)``. Times after the series' last one are taken too, but a network
        extrapolates there: nothing in the data has checked it.
    """

    def __init__(
        self,
        scaling: Scaling,
        state_names: Sequence[str],
        times: Sequence[float],
        *,
        width: int,
        depth: int,
        augment: int,
        solver: dict[str, Any],
    ):
        super().__init__()
        self.scaling = scaling
        self.state_names = tuple(state_names)
        self.times = tuple(float(t) for t in times)
        self.width, self.depth, self.augment = width, depth, augment
        self.solver = dict(solver)
        size = len(self.state_names) + augment
        self.initial = nn.Parameter(torch.zeros(size, dtype=DTYPE))
        saves = scaling.times(self.times)
        self.net = network(size, width, depth)
        self._saves = saves.tolist()

    @property
    def node(self) -> NeuralODE:
        """The trajectory as a layer, from the scaled state at the first time to those at the series' times."""
        compile_at_once(self.net)  # a run that is taken up again ends as one that was not interrupted
        return NeuralODE(self.net, (0.0, self._saves[-1]), saveat=self._saves, **self.solver)

    def solve(self, times: Tensor | Sequence[float] | None = None, **options: Any) -> Solution:
        """The :class:`Solution` in scaled units, unobserved states included.

        Args:
            times: increasing times in data units, none before the series' first; its own where None.
            **options: of :func:`pydiffeqflux.solve`, over those that the module was fitted with.

        Raises:
            InvalidTimesError: other times.
        """
        wanted = torch.as_tensor(self.times if times is None else times, dtype=DTYPE).detach().reshape(-1)
        start = self.scaling.time_start
        ok = len(wanted) > 0 and bool(wanted.isfinite().all()) and bool((wanted.diff() > 0).all())
        if not ok or float(wanted[0]) < start or float(wanted[-1]) <= start:
            raise InvalidTimesError(
                f"times must be finite, strictly increasing, not before the series' first time ({start:g}) and end"
                f" after it; got {len(wanted)} times" + (f", {wanted[0]:g} to {wanted[-1]:g}." if len(wanted) else ".")
            )
        saves = self.scaling.times(wanted)
        problem = ODEProblem(Autonomous(self.net), self.initial, (0.0, float(saves[-1])))
        return solve(problem, saveat=saves.tolist(), **{**self.solver, **options})

    def observed(self, states: Tensor) -> Tensor:
        """Scaled states, unobserved ones included, to observed ones in data units."""
        return self.scaling.values(states[..., : len(self.state_names)])

    def forward(self, times: Tensor | Sequence[float] | None = None) -> Tensor:
        if times is None:
            return self.observed(self.node(self.initial))
        return self.observed(self.solve(times, dense=False).ys)

    def config(self) -> dict[str, Any]:
        """What :meth:`from_config` needs to build this module again, without its weights."""
        return {
            "scaling": asdict(self.scaling),
            "state_names": list(self.state_names),
            "times": list(self.times),
            "width": self.width,
            "depth": self.depth,
            "augment": self.augment,
            "solver": self.solver,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FittedODE:
        units = config["scaling"]
        scaling = Scaling(
            tuple(units["logs"]), tuple(units["means"]), tuple(units["stds"]), units["time_start"], units["time_unit"]
        )
        rest = {k: v for k, v in config.items() if k not in ("scaling", "state_names", "times")}
        return cls(scaling, config["state_names"], config["times"], **rest)
