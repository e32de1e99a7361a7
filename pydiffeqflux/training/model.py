"""What is fitted: a right-hand side in scaled units, an initial state, and the way back to data units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.native import compile_at_once
from ..errors import InvalidTimesError
from ..layers.augmented import AugmentedNeuralODE
from ..layers.hamiltonian import HamiltonianNN
from ..layers.neural_ode import NeuralODE
from ..layers.universal import UniversalODE
from ..solution import Solution
from .families import family
from .known import ScaledKnown, known_terms
from .networks import network
from .scaling import DTYPE, Scaling


class Fitted(nn.Module):
    """What every family's module has: units, names, times.

    Args:
        scaling: units of the data.
        state_names: the observed states.
        times: the times of the series, in data units.
        width, depth: size of the network.
        solver: keyword arguments of the layer: method, rtol, atol, backend, ...
    """

    def __init__(
        self,
        scaling: Scaling,
        state_names: Sequence[str],
        times: Sequence[float],
        *,
        width: int,
        depth: int,
        solver: dict[str, Any],
        model: str,
    ):
        super().__init__()
        self.scaling = scaling
        self.state_names = tuple(state_names)
        self.times = tuple(float(t) for t in times)
        self.width, self.depth = width, depth
        self.solver = dict(solver)
        self.model = model
        self._saves: list[float] = scaling.times(self.times).tolist()

    @property
    def label(self) -> str:
        """What pictures call it."""
        return family(self.model).label

    def saves(self, times: Tensor | Sequence[float] | None) -> list[float]:
        """Times in data units to scaled ones; the series' own where None.

        Raises:
            InvalidTimesError: they do not increase, or begin before the series does.
        """
        if times is None:
            return self._saves
        wanted = torch.as_tensor(times, dtype=DTYPE).detach().reshape(-1)
        start = self.scaling.time_start
        ok = len(wanted) > 0 and bool(wanted.isfinite().all()) and bool((wanted.diff() > 0).all())
        if not ok or float(wanted[0]) < start or float(wanted[-1]) <= start:
            raise InvalidTimesError(
                f"times must be finite, strictly increasing, not before the series' first time ({start:g}) and end"
                f" after it; got {len(wanted)} times" + (f", {wanted[0]:g} to {wanted[-1]:g}." if len(wanted) else ".")
            )
        found: list[float] = self.scaling.times(wanted).tolist()
        return found

    def observed(self, states: Tensor) -> Tensor:
        """Scaled states, unobserved ones included, to observed ones in data units."""
        return self.scaling.values(states[..., : len(self.state_names)])

    def config(self) -> dict[str, Any]:
        """What is needed to build this module again, without its weights."""
        return {
            "scaling": asdict(self.scaling),
            "state_names": list(self.state_names),
            "times": list(self.times),
            "width": self.width,
            "depth": self.depth,
            "solver": self.solver,
            "model": self.model,
        }


class FittedODE(Fitted):
    """An ordinary differential equation that was fitted, with its initial state and units.

    Made by ``fit``, read back by ``load``. ``model`` is one of

    - ``"node"``: ``dz/ds = net(z)`` for the scaled observed states and ``augment`` further states that nobody observed
      (they start at a trained value too). In the plane, solutions of an autonomous equation cannot cross; observed
      ones can, where something unobserved differs.
    - ``"augmented"``: the same, but the unobserved states start at zero, as in :class:`pydiffeqflux.AugmentedNeuralODE`
      (Dupont, Doucet & Teh 2019, arXiv:1904.01681).
    - ``"ude"``: ``dz/ds = known(z) + net(z)``, :class:`pydiffeqflux.UniversalODE` (Rackauckas et al. 2020,
      arXiv:2001.04385); see :mod:`pydiffeqflux.training.known` on the known terms.
    - ``"hamiltonian"``: the motion of an energy that is learnt, :class:`pydiffeqflux.HamiltonianNN` (Greydanus, Dzamba
      & Yosinski 2019, arXiv:1906.01563); the first half of the states are positions, the second their momenta.

    Args:
        scaling, state_names, times, width, depth, solver: as for all families (see :class:`Fitted`).
        augment: how many unobserved states.
        model: the family.
        known: the known terms of a ``"ude"``.

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
        model: str = "node",
        known: str | None = None,
    ):
        super().__init__(scaling, state_names, times, width=width, depth=depth, solver=solver, model=model)
        self.augment, self.known_text = augment, known
        observed = len(self.state_names)
        size = observed + augment
        self.initial = nn.Parameter(torch.zeros(observed if model == "augmented" else size, dtype=DTYPE))
        if model == "hamiltonian":
            self.net: nn.Module = HamiltonianNN(network(size, 1, width, depth))
        else:
            self.net = network(size, size, width, depth)
        self.known = None if known is None else ScaledKnown(known_terms(known, scaling), scaling, augment)
        # Kept, so that what the engines know of it outlives a solve.
        self.rhs: Callable[[Any, Any], Any] = self.layer(self._saves).rhs

    def layer(self, saves: Sequence[float], **options: Any) -> NeuralODE | UniversalODE:
        """The trajectory as a layer, from :attr:`initial` to the states at these scaled times.

        Args:
            saves: scaled times.
            **options: of :func:`pydiffeqflux.solve`, over those that the module was fitted with.
        """
        span, kept = (0.0, float(saves[-1])), {**self.solver, "saveat": list(saves), **options}
        if self.known is not None:
            return UniversalODE(self.known, self.net, span, **kept)
        if self.model == "augmented":
            return AugmentedNeuralODE(self.net, span, self.augment, **kept)
        return NeuralODE(self.net, span, **kept)

    def prepare(self) -> None:
        """A run that is taken up again is to end as one that was not interrupted: no engine may be chosen half-way."""
        compile_at_once(self.rhs)

    def solve(self, times: Tensor | Sequence[float] | None = None, **options: Any) -> Solution:
        """The :class:`Solution` in scaled units, unobserved states included.

        Args:
            times: increasing times in data units, none before the series' first; its own where None.
            **options: of :func:`pydiffeqflux.solve`, over those that the module was fitted with.

        Raises:
            InvalidTimesError: other times.
        """
        self.prepare()
        return self.layer(self.saves(times), **options).solve(self.initial)

    def forward(self, times: Tensor | Sequence[float] | None = None) -> Tensor:
        return self.observed(self.solve(times, dense=False).ys)

    def trained_by_shooting(self) -> list[nn.Parameter]:
        """Everything but the initial state, which is a node there."""
        return [p for name, p in self.named_parameters() if name != "initial"]

    def energy(self, states: Tensor) -> Tensor:
        """The learnt energy of scaled states, in data units and up to a constant (``model="hamiltonian"``).

        Shapes:
            ``(..., d)`` to ``(...)``.
        """
        assert isinstance(self.net, HamiltonianNN)
        half = len(self.state_names) // 2
        unit = self.scaling.stds[0] * self.scaling.stds[half] / self.scaling.time_unit
        return self.net.energy(states) * unit

    def findings(self, states: Tensor) -> dict[str, Any]:
        """What the family has to say for itself, in plain numbers; ``states`` is the scaled trajectory."""
        found: dict[str, Any] = {"family": self.model, "unobserved": self.augment}
        if self.known is not None:
            with torch.no_grad():
                terms, learnt = self.known.terms, self.net(states).square().mean().sqrt()
            found["known"] = self.known_text
            if isinstance(terms, nn.Module):
                found["known_parameters"] = {name: p.tolist() for name, p in terms.named_parameters()}
            found["network_share"] = float(learnt / self._speed(states))
        if self.model == "hamiltonian":
            with torch.no_grad():
                energies = self.energy(states)
            found["energy"] = {"mean": float(energies.mean()), "range": float(energies.max() - energies.min())}
        return found

    def _speed(self, states: Tensor) -> Tensor:
        """How fast the scaled states change along the trajectory, root mean square."""
        with torch.no_grad():
            times = torch.tensor(self._saves, dtype=DTYPE)[:, None]
            rates: Tensor = self.rhs(times, states)
            return rates.square().mean().sqrt()

    def config(self) -> dict[str, Any]:
        return {**super().config(), "augment": self.augment, "known": self.known_text}
