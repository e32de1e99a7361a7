"""Rosenbrock23, the order 2(3) method of ode23s, L-stable, with its quadratic dense output.

L. F. Shampine & M. W. Reichelt, "The MATLAB ODE suite", SIAM J. Sci. Comput. 18 (1997) 1-22, section 4.

In the paper's slopes, with ``W = I - d h J`` and ``T = df/dt``::

    k1 = W^-1 (f0 + h d T)            k2 = W^-1 (f1 - k1) + k1        f1 = f(t + h/2, y + h/2 k1)
    y1 = y + h k2                     f2 = f(t + h, y1)
    k3 = W^-1 (f2 - e32 (k2 - f1) - 2 (k1 - f0) + h d T)              error = h/6 (k1 - 2 k2 + k3)
    y(theta) = y + h (theta (1 - theta) k1 + theta (theta - 2 d) k2) / (1 - 2 d)

The tableau holds them in transformed form: ``u1 = d h k1``, ``u2 = d h (k2 - k1)``, and f0 and f1 in k3 written
through k1 and k2, so that ``h k3 = (2 u1 + e32 u2 + u3) / d``.
"""

from __future__ import annotations

from math import sqrt

from .tableau import RosenbrockTableau

_D = 1.0 / (2.0 + sqrt(2.0))
_E32 = 6.0 + sqrt(2.0)

TABLEAU = RosenbrockTableau(
    order=2,
    error_order=2,
    gamma=_D,
    c=(0.0, 0.5, 1.0),
    a=((), (0.5 / _D,), (1.0 / _D, 1.0 / _D)),
    coupling=((), (-1.0 / _D,), (-2.0 / _D, -_E32 / _D)),
    d=(_D, 0.0, -_D),
    b=(1.0 / _D, 1.0 / _D, 0.0),
    error=(1.0 / (6.0 * _D), (_E32 - 2.0) / (6.0 * _D), 1.0 / (6.0 * _D)),
    dense=(
        (1.0 / _D, 0.0),
        (-2.0 / (1.0 - 2.0 * _D), 1.0 / (_D * (1.0 - 2.0 * _D))),
        (0.0, 0.0),
    ),
)
