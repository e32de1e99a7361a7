"""TR-BDF2 for fixed steps, of order 2: a trapezoidal stage, then a BDF2 stage; L-stable.

R. E. Bank et al., "Transient simulation of silicon devices and circuits", IEEE Trans. CAD 4 (1985) 436-451;
coefficients in the form of M. E. Hosea, L. F. Shampine, "Analysis and implementation of TR-BDF2", Appl. Numer.
Math. 20 (1996) 21-37.
"""

from __future__ import annotations

import math

from .tableau import ImplicitTableau

_D, _W = 1 - math.sqrt(2.0) / 2, math.sqrt(2.0) / 4

TABLEAU = ImplicitTableau(
    order=2,
    c=(0.0, 2 * _D, 1.0),
    a=((0.0, 0.0, 0.0), (_D, _D, 0.0), (_W, _W, _D)),
    b=(_W, _W, _D),
)
