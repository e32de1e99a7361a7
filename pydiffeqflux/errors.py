"""Every error that a user can cause, each a class of its own.

All of them derive from :class:`PyDiffEqFluxError` and from the built-in that a caller would expect
(``ValueError``, ``TypeError``, ...). Where torchdiffeq asserts, ours is an ``AssertionError`` too, so
that a program written for torchdiffeq still catches it. Messages name the argument, the value and the
way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class PyDiffEqFluxError(Exception):
    """Base class of every error raised by pydiffeqflux."""


# -- what was asked for -------------------------------------------------------------------------


class InvalidArgumentError(PyDiffEqFluxError, ValueError):
    """An argument has a value that no solve could work with (a negative tolerance, say)."""


class InvalidTimesError(InvalidArgumentError, AssertionError):
    """Times that are empty, not finite, not monotonic, or outside the time span."""


class InvalidStateError(PyDiffEqFluxError, TypeError, AssertionError):
    """A state that is not a floating or complex tensor, nor a tuple or dict of such tensors."""


class ShapeError(PyDiffEqFluxError, ValueError):
    """A shape or structure that does not fit: a right-hand side's or callback's result, or a layer's input."""


class HistoryError(PyDiffEqFluxError, ValueError):
    """A history that cannot be had at a time which a delayed state was asked for."""


class HistoryShapeError(HistoryError, ShapeError):
    """A history whose states do not have the structure and shapes of ``y0``."""


class PhaseSpaceError(ShapeError):
    """A state that has no two halves of one size, positions and momenta."""


class DtypeError(PyDiffEqFluxError, TypeError):
    """Two dtypes or devices that do not go together, or one that the method cannot work with."""


class HistoryDtypeError(HistoryError, DtypeError):
    """A history whose states do not have the dtypes, or the device, of ``y0``."""


class SignatureError(PyDiffEqFluxError, TypeError):
    """It cannot be told how a model wants to be called: ``model(y)`` or ``model(t, y)``."""


class UnknownNameError(PyDiffEqFluxError, ValueError):
    """A method, backend or sensealg by a name that does not exist."""

    def __init__(self, argument: str, name: object, known: Iterable[str]):
        names = sorted(set(known))
        self.argument, self.name, self.known, self.nearest = argument, name, names, _nearest(name, names)
        super().__init__(self._message())

    def _message(self) -> str:
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{self.argument}={self.name!r} is not known.{hint} Known: {', '.join(self.known)}."

    def __reduce__(self) -> tuple[Any, ...]:  # pickled by its arguments, not by its message
        return type(self), (self.argument, self.name, self.known)


class UnknownOptionError(UnknownNameError, TypeError):
    """A keyword argument that the function does not take; ``argument`` is the function's name."""

    def _message(self) -> str:
        hint = f" Did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{self.argument}() takes no argument {self.name!r}.{hint} It takes: {', '.join(self.known)}."


def _nearest(name: object, names: Iterable[str]) -> str | None:
    if not isinstance(name, str):
        return None
    lowered = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return lowered[close[0]] if close else None


class UnsupportedError(PyDiffEqFluxError, NotImplementedError):
    """Two choices that exist, but not together (the message says which pair does)."""


class UntraceableError(UnsupportedError):
    """A right-hand side that cannot be turned into a graph, or one whose operators an engine cannot translate."""

    @classmethod
    def operator(cls, name: str, where: str | None, why: str = "has no translation") -> UntraceableError:
        """The error for the operator ``name``, met in the user's code at ``where``."""
        place = f" (in {where})" if where else ""
        return cls(
            f"the right-hand side uses {name}{place}, which {why}. Solve it with backend='torch', which takes any torch"
            f" code."
        )


class NotSeparableError(UnsupportedError):
    """An explicit symplectic method on a system in which a half of the state drives itself."""


class MethodNoiseError(UnsupportedError, InvalidArgumentError):
    """A method for SDEs of another kind of noise, or in the other interpretation; the message names those for this."""


class InvalidLagError(InvalidArgumentError):
    """A lag of a delay differential equation that is none: zero, negative, not finite, or not one number."""


class DelayMethodError(UnsupportedError, InvalidArgumentError):
    """A method that has no dense output to read delayed states off, or keeps more than the state between steps."""


class DelaySensitivityError(UnsupportedError):
    """A sensitivity algorithm that delay differential equations do not have; the message names those that they do."""


class MassMatrixError(InvalidArgumentError, ShapeError):
    """A mass matrix that is none: not square, of another size than the state, not real, or not finite."""


class MassMatrixMethodError(UnsupportedError):
    """A mass matrix, or an implicit equation, with a method that cannot take it (an explicit one)."""


class InconsistentStateError(InvalidArgumentError):
    """A state that does not satisfy the algebraic equations; ``residual`` is by how much, ``t`` when."""

    def __init__(self, message: str, residual: float, t: float):
        super().__init__(message)
        self.residual, self.t = residual, t

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.residual, self.t)


class HighIndexError(InvalidArgumentError):
    """Algebraic equations that do not determine the algebraic variables: the index is above 1."""


class InvalidToleranceError(InvalidArgumentError, AssertionError):
    """A tolerance that is negative, not finite, requires a gradient, or does not fit the state."""


class InvalidOptionError(InvalidArgumentError, AssertionError):
    """An entry of ``odeint``'s ``options`` that its method could not work with."""


class StepSizeRequiredError(InvalidArgumentError, AssertionError):
    """A fixed-step method with neither ``dt`` nor ``saveat`` to step along."""


# -- what happened while solving ----------------------------------------------------------------


class SolveError(PyDiffEqFluxError, RuntimeError):
    """The solve could not reach its end. ``throw=False`` returns the part that was solved instead."""


class MaxStepsError(SolveError, AssertionError):
    """``max_steps`` steps were not enough."""


class StepUnderflowError(SolveError, AssertionError):
    """The step size fell below what the time's floating-point numbers can resolve."""


class NonFiniteError(SolveError, FloatingPointError, AssertionError):
    """The right-hand side or the state became NaN or infinite."""


class ConvergenceError(SolveError):
    """An implicit equation could not be solved with the step at its smallest."""


class InitialisationError(ConvergenceError):
    """No consistent initial state was found near the one that was given."""


class SingularMassError(SolveError):
    """A Lagrangian whose second derivative in the velocities has no inverse: it gives no accelerations."""


class EnsembleError(SolveError):
    """One trajectory of an ensemble failed; ``index`` says which, and the cause how."""

    def __init__(self, index: int, message: str):
        super().__init__(message)
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.index, str(self))


class EventNotFoundError(SolveError, AssertionError):
    """A solve until an event ran to the end of time without one."""


class ScipySolverError(SolveError):
    """SciPy's solver gave up; the message is SciPy's."""


# -- afterwards ---------------------------------------------------------------------------------


class DenseOutputError(PyDiffEqFluxError, ValueError, AssertionError):
    """``sol(t)`` without ``dense=True``, or at a time outside the solved span."""


class GradientError(PyDiffEqFluxError, RuntimeError):
    """A gradient was asked for that the chosen sensealg does not have."""


class BackendUnavailableError(PyDiffEqFluxError, ImportError):
    """The backend asked for cannot run here; the message says how to get it."""


class ConfigurationError(PyDiffEqFluxError, OSError):
    """The user's configuration file cannot be read or written."""


class JuliaError(PyDiffEqFluxError, RuntimeError):
    """Julia raised an error; its message is in this one."""


class JuliaForkError(BackendUnavailableError, RuntimeError):
    """Julia was called in a forked process."""


class NotPicklableError(PyDiffEqFluxError, TypeError):
    """Something that was to be sent to another process, and cannot be."""


# -- data and files (the command line and `fit`) ------------------------------------------------


class DataError(PyDiffEqFluxError, ValueError):
    """A data file that is missing a column, has a gap, or is not a time series."""


class DataFileNotFoundError(PyDiffEqFluxError, FileNotFoundError):
    """A data file or checkpoint that is not there."""


class CheckpointError(PyDiffEqFluxError, ValueError):
    """A checkpoint that is damaged, or belongs to another run."""


class OutputError(PyDiffEqFluxError, OSError):
    """An output folder that cannot be written."""
