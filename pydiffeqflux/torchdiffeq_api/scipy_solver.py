"""``method="scipy_solver"``: SciPy's ``solve_ivp``, without a gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.common.autocast import in_own_precision
from ..backends.common.rhs import Rhs
from ..errors import ScipySolverError, UnsupportedError
from .times import Times

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class ScipyEngine:
    """Hands the problem to SciPy: everything leaves torch, and comes back detached.

    Args:
        solver: the ``method`` of ``scipy.integrate.solve_ivp``.
        min_step, max_step: bounds of the step size, the lower one for LSODA only.
    """

    rhs: Rhs
    rtol: float | Tensor
    atol: float | Tensor
    solver: str = "LSODA"
    min_step: float = 0.0
    max_step: float = math.inf

    @in_own_precision
    def integrate(self, y0: Tensor, times: Times) -> list[Tensor]:
        """The states at all times, the first of them ``y0``; none of them with a gradient.

        With a ``min_step`` that LSODA cannot keep, states that were not reached are NaN, and there is a warning.

        Raises:
            ScipySolverError: SciPy did not reach the last time for another reason.
        """
        if len(times.values) == 1:
            return [y0.detach()]
        from scipy.integrate import solve_ivp  # SciPy is slow to import

        from .bounded_lsoda import BoundedLSODA

        bounded = self.solver == "LSODA" and self.min_step > 0
        found = solve_ivp(
            self._function(y0),
            (times.values[0], times.values[-1]),
            y0.detach().cpu().numpy().reshape(-1),
            t_eval=times.values,
            method=BoundedLSODA if bounded else self.solver,
            rtol=_array(self.rtol),
            atol=_array(self.atol),
            max_step=self.max_step,
            **({"min_step": self.min_step} if bounded else {}),
        )
        values = np.asarray(found.y).T
        if not found.success:
            reached = found.t[-1] if len(found.t) else times.values[0]
            message = f"SciPy's {self.solver} stopped after t={reached:.6g}: {found.message}"
            if not bounded:
                raise ScipySolverError(f"{message} Loosen rtol/atol, or choose another options['solver'].")
            warnings.warn(f"{message} States after that are NaN; lower options['min_step'].", stacklevel=4)
            missing = np.full((len(times.values) - len(values), y0.numel()), np.nan)
            values = np.concatenate([values.reshape(-1, y0.numel()), missing])
        states = torch.as_tensor(values.copy()).to(y0.device, y0.dtype)
        return [y0.detach(), *states.reshape(-1, *y0.shape)[1:].unbind(0)]

    def _function(self, like: Tensor) -> Callable[[float, Array], Array]:
        @torch.no_grad()
        def function(t: float, y: Array) -> Array:
            state = torch.as_tensor(y.copy()).to(like.device, like.dtype).reshape(like.shape)
            out: Array = self.rhs(float(t), state).detach().cpu().numpy().reshape(-1)
            return out

        return function

    @in_own_precision
    def until_event(self, y0: Tensor, times: Times, event_fn: Callable[..., Tensor]) -> tuple[float, Tensor]:
        """Not there.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("method='scipy_solver' has no events; choose one of the native methods, 'dopri5' say.")

    @in_own_precision
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
