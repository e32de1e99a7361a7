"""Changes of the state, at events and doses."""

from __future__ import annotations

from torch import Tensor

from ...callbacks import Affect
from ...errors import DtypeError, ShapeError
from .rhs import Rhs


def affected(rhs: Rhs, affect: Affect, t: Tensor, y: Tensor) -> Tensor:
    """The packed state that ``affect`` makes of ``y``.

    Args:
        t: the time as the user's function gets it.

    Raises:
        ShapeError: it does not have the structure and shape of the state.
        DtypeError: it is complex and the state real.
    """
    if rhs.spec is not None:
        return rhs.spec.flatten(affect(t, rhs.spec.unflatten(y)), "affect's return value")
    new = affect(t, y)
    if not isinstance(new, Tensor) or new.shape != y.shape:
        got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ShapeError(f"affect returned {got}; it must return the whole new state, of shape {tuple(y.shape)}.")
    if new.is_complex() and not y.is_complex():
        raise DtypeError(f"affect returned {new.dtype} for a state of {y.dtype}; make y0 complex.")
    return new.to(y.dtype)
