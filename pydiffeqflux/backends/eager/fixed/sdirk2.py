"""The L-stable SDIRK method with two stages, of order 2.

R. Alexander, "Diagonally implicit Runge-Kutta methods for stiff ODEs", SIAM J. Numer. Anal. 14 (1977) 1006-1021.
"""

from __future__ import annotations

import math

from .tableau import ImplicitTableau

_GAMMA = 1 - math.sqrt(2.0) / 2

TABLEAU = ImplicitTableau(
    order=2,
    c=(_GAMMA, 1.0),
    a=((_GAMMA, 0.0), (1 - _GAMMA, _GAMMA)),
    b=(1 - _GAMMA, _GAMMA),
)
