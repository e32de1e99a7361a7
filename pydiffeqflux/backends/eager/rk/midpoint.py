"""The explicit midpoint rule, of order 2.

C. Runge, "Ueber die numerische Aufloesung von Differentialgleichungen", Math. Ann. 46 (1895) 167-178.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(order=2, error_order=0, c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0))
