"""The implicit Euler method, of order 1.

E. Hairer, G. Wanner, "Solving Ordinary Differential Equations II", 2nd edition (1996), section IV.3.
"""

from __future__ import annotations

from .tableau import ImplicitTableau

TABLEAU = ImplicitTableau(order=1, c=(1.0,), a=((1.0,),), b=(1.0,))
