"""``method="scipy_solver"``: SciPy's ``solve_ivp``, without a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ..backends.eager.rhs import Rhs
from ..errors import ScipySolverError, UnsupportedError
from .times import Times

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class ScipyEngine:
    """Hands the problem to SciPy: everything leaves torch, and comes back detached.

    Args:
        solver: the ``method`` of ``scipy.integrate.solve_ivp``.
        limits: further arguments of it (``min_step``, ``max_step``, ``first_step``).
    """

    rhs: Rhs
    rtol: float | Tensor
    atol: float | Tensor
    solver: str = "LSODA"
    limits: dict[str, float] = field(default_factory=dict)

    def integrate(self, y0: Tensor, times: Times) -> list[Tensor]:
        """The states at all times, the first of them ``y0``; none of them with a gradient.

        Raises:
            ScipySolverError: SciPy did not reach the last time.
        """
        if len(times.values) == 1:
            return [y0.detach()]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*have no effect for a chosen solver.*")
            found = solve_ivp(
                self._function(y0),
                (times.values[0], times.values[-1]),
                y0.detach().cpu().numpy().reshape(-1),
                t_eval=times.values,
                method=self.solver,
                rtol=_array(self.rtol),
                atol=_array(self.atol),
                **self.limits,
            )
        if not found.success:
            raise ScipySolverError(
                f"SciPy's {self.solver} stopped after t={found.t[-1] if len(found.t) else times.values[0]:.6g}:"
                f" {found.message} Loosen rtol/atol, or choose another options['solver']."
            )
        states = torch.as_tensor(found.y.T.copy()).to(y0.device, y0.dtype)
        return [y0.detach(), *states.reshape(-1, *y0.shape)[1:].unbind(0)]

    def _function(self, like: Tensor) -> Callable[[float, Array], Array]:
        @torch.no_grad()
        def function(t: float, y: Array) -> Array:
            state = torch.as_tensor(y.copy()).to(like.device, like.dtype).reshape(like.shape)
            out: Array = self.rhs(float(t), state).detach().cpu().numpy().reshape(-1)
            return out

        return function

    def until_event(self, y0: Tensor, times: Times, event_fn: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """Not there.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("method='scipy_solver' has no events; choose one of the native methods, 'dopri5' say.")

    def dense(self, y0: Tensor, times: Times) -> Callable[[Any], Any]:
        """Not there.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("method='scipy_solver' has no dense output; choose one of the native methods.")


def _array(tol: float | Tensor) -> float | Array:
    if isinstance(tol, Tensor):
        array: Array = tol.detach().cpu().numpy().reshape(-1)
        return array
    return tol
