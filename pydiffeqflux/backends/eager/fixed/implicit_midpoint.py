"""The implicit midpoint rule, of order 2: the Gauss method with one stage, symplectic.

E. Hairer, C. Lubich, G. Wanner, "Geometric Numerical Integration", 2nd edition (2006), section II.1.
"""

from __future__ import annotations

from .tableau import ImplicitTableau

TABLEAU = ImplicitTableau(order=2, c=(1 / 2,), a=((1 / 2,),), b=(1.0,))
