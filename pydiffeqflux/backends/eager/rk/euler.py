"""Euler's method, of order 1.

L. Euler, "Institutiones calculi integralis", volume 1 (1768), section 2, chapter 7.
"""

from __future__ import annotations

from .tableau import ExplicitTableau

TABLEAU = ExplicitTableau(order=1, error_order=0, c=(0.0,), a=((),), b=(1.0,))
