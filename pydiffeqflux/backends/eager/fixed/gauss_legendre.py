"""The Gauss methods with two and three stages, of orders 4 and 6, A-stable and symplectic.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd edition (1996), section IV.5, tables 5.1
and 5.2. (torchdiffeq's ``gl4`` has both of its nodes at ``1/2 - sqrt(3)/6``, which is of order 1 where f depends
on t; the second belongs at ``1/2 + sqrt(3)/6``.)
"""

from __future__ import annotations

import math

from .tableau import ImplicitTableau

_R3, _R15 = math.sqrt(3.0), math.sqrt(15.0)

GAUSS4 = ImplicitTableau(
    order=4,
    c=(1 / 2 - _R3 / 6, 1 / 2 + _R3 / 6),
    a=((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)),
    b=(1 / 2, 1 / 2),
)

GAUSS6 = ImplicitTableau(
    order=6,
    c=(1 / 2 - _R15 / 10, 1 / 2, 1 / 2 + _R15 / 10),
    a=(
        (5 / 36, 2 / 9 - _R15 / 15, 5 / 36 - _R15 / 30),
        (5 / 36 + _R15 / 24, 2 / 9, 5 / 36 - _R15 / 24),
        (5 / 36 + _R15 / 30, 2 / 9 + _R15 / 15, 5 / 36),
    ),
    b=(5 / 18, 4 / 9, 5 / 18),
)
