"""The trapezoidal rule, of order 2: the Lobatto IIIA method with two stages.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd edition (1996), section IV.5.
"""

from __future__ import annotations

from .tableau import ImplicitTableau

TABLEAU = ImplicitTableau(order=2, c=(0.0, 1.0), a=((0.0, 0.0), (1 / 2, 1 / 2)), b=(1 / 2, 1 / 2))
