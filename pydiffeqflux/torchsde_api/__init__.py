"""torchsde's interface, on this package's solvers and adjoints: a program runs with the import changed.

``sdeint`` and ``sdeint_adjoint`` are this package's own; Brownian motions, the base classes of equations and the
names in ``settings`` are torchsde's, so that what was made for one works with the other.
"""

from __future__ import annotations

from typing import Any

from .adjoint import sdeint_adjoint
from .interface import sdeint

#: What torchsde has and is handed on as it is; imported when first asked for.
HANDED_ON = (
    "BaseBrownian",
    "BaseSDE",
    "BrownianInterval",
    "BrownianPath",
    "BrownianTree",
    "ReverseBrownian",
    "SDEIto",
    "SDEStratonovich",
    "brownian_interval_like",
)

__all__ = ["sdeint", "sdeint_adjoint"]


def __getattr__(name: str) -> Any:
    if name in HANDED_ON:
        import torchsde

        return getattr(torchsde, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
