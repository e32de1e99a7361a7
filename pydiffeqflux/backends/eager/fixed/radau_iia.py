"""The Radau IIA methods with two and three stages, of orders 3 and 5, L-stable and stiffly accurate.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd edition (1996), section IV.5, tables 5.5
and 5.6.
"""

from __future__ import annotations

import math

from .tableau import ImplicitTableau

_R6 = math.sqrt(6.0)

RADAU3 = ImplicitTableau(
    order=3,
    c=(1 / 3, 1.0),
    a=((5 / 12, -1 / 12), (3 / 4, 1 / 4)),
    b=(3 / 4, 1 / 4),
)

_B5 = ((16 - _R6) / 36, (16 + _R6) / 36, 1 / 9)

RADAU5 = ImplicitTableau(
    order=5,
    c=((4 - _R6) / 10, (4 + _R6) / 10, 1.0),
    a=(
        ((88 - 7 * _R6) / 360, (296 - 169 * _R6) / 1800, (-2 + 3 * _R6) / 225),
        ((296 + 169 * _R6) / 1800, (88 + 7 * _R6) / 360, (-2 - 3 * _R6) / 225),
        _B5,
    ),
    b=_B5,
)
