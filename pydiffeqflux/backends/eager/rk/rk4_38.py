"""The 3/8 rule, of order 4: what torchdiffeq calls ``rk4``.

W. Kutta, "Beitrag zur naeherungsweisen Integration totaler Differentialgleichungen", Z. Math. Phys. 46 (1901)
435-453.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(
    order=4,
    error_order=0,
    c=(0.0, 1 / 3, 2 / 3, 1.0),
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
)
