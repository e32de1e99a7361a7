"""Known terms of a universal differential equation: rates of change in the data's own units, by name or from a file."""

from __future__ import annotations

import hashlib
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..dynamical import halves
from ..errors import (
    DataError,
    DataFileNotFoundError,
    InvalidArgumentError,
    PyDiffEqFluxError,
    ShapeError,
    UnknownNameError,
)
from ..layers.calling import as_rhs, takes_time
from .scaling import DTYPE, Scaling


def kinematics(y: Tensor) -> Tensor:
    """``dq/dt = v``: the first half of the states are positions, the second their velocities.

    The network is left the accelerations. Velocities must be in the positions' unit per unit of the data's time.
    """
    return torch.cat([halves(y)[1], torch.zeros_like(halves(y)[1])], -1)


NAMED: dict[str, Callable[..., Tensor]] = {"kinematics": kinematics}


def known_terms(text: str, scaling: Scaling) -> Callable[..., Tensor]:
    """The terms that ``text`` names: ``"kinematics"``, or ``FILE.py:NAME``.

    In the file, NAME is a function or an ``nn.Module`` of ``(y)`` or ``(t, y)``, or a class of such modules that needs
    no arguments: the states in data units, ``(..., d)`` in the order in which they were named, to their rates of change
    per unit of the data's time. A module's parameters are trained along (keep them of the order of 1).

    Raises:
        UnknownNameError: another name.
        DataFileNotFoundError: there is no such file.
        DataError: the file cannot be run, or defines no NAME.
        InvalidArgumentError, SignatureError, ShapeError: NAME is not such a function.
        PhaseSpaceError: an odd number of states with ``"kinematics"``.
    """
    if text in NAMED:
        _check(NAMED[text], text, scaling)
        return NAMED[text]
    file, name = split(text)
    try:
        defined = runpy.run_path(file)
    except FileNotFoundError:
        raise DataFileNotFoundError(f"known={text!r}: there is no file {file}.") from None
    except PyDiffEqFluxError:
        raise
    except Exception as why:
        raise DataError(f"known={text!r}: {file} cannot be run: {type(why).__name__}: {why}.") from why
    if name not in defined:
        names = ", ".join(k for k in defined if not k.startswith("_"))
        raise DataError(f"known={text!r}: {file} defines no {name}; it has {names}.")
    found = defined[name]
    if isinstance(found, type) and issubclass(found, nn.Module):
        found = found()
    if not callable(found):
        raise InvalidArgumentError(
            f"known={text!r} is a {type(found).__name__}; give a function or module of (y) or (t, y)."
        )
    if isinstance(found, nn.Module):
        found = found.to(DTYPE)
    _check(found, text, scaling)
    terms: Callable[..., Tensor] = found
    return terms


def split(text: str) -> tuple[str, str]:
    """``FILE.py:NAME`` in two.

    Raises:
        UnknownNameError: it is not of that form, nor one of the names.
    """
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise UnknownNameError("known", text, [*NAMED, "FILE.py:NAME"])
    return file, name


def digest(text: str | None) -> str | None:
    """A hash of the file that known terms come from; None for those that have a name.

    Raises:
        DataFileNotFoundError: there is no such file.
    """
    if text is None or text in NAMED:
        return None
    file, _ = split(text)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError as why:
        raise DataFileNotFoundError(f"known={text!r}: {file} cannot be read: {why.strerror or why}.") from None


def _check(terms: Callable[..., Any], text: str, scaling: Scaling) -> None:
    """Whether the terms return a rate for each state."""
    y = scaling.values(torch.zeros(3, len(scaling.stds), dtype=DTYPE))
    with torch.no_grad():
        rates = as_rhs(terms, takes_time(terms))(y.new_full((3, 1), scaling.time_start), y)
    if not isinstance(rates, Tensor) or rates.shape != y.shape:
        got = f"shape {tuple(rates.shape)}" if isinstance(rates, Tensor) else f"a {type(rates).__name__}"
        raise ShapeError(
            f"known={text!r} returned {got} for states of shape {tuple(y.shape)}; it must return a tensor of that"
            f" shape, the rate of change of each (torch.stack([...], -1) puts them together)."
        )


class ScaledKnown(nn.Module):
    """Known terms in the network's units: ``(t, z)`` scaled, to scaled rates; 0 for states that nobody observed.

    Args:
        terms: rates of change in data units.
        scaling: units of the data.
        unobserved: how many states come after the observed ones.
    """

    logs: Tensor
    means: Tensor
    stds: Tensor

    def __init__(self, terms: Callable[..., Tensor], scaling: Scaling, unobserved: int):
        super().__init__()
        self.terms = terms
        self._timed = takes_time(terms)
        self.unobserved = unobserved
        self.start, self.unit = scaling.time_start, scaling.time_unit
        self.register_buffer("logs", torch.tensor(scaling.logs), persistent=False)
        for name in ("means", "stds"):
            self.register_buffer(name, torch.tensor(getattr(scaling, name), dtype=DTYPE), persistent=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        d = len(self.logs)
        raw = z[..., :d] * self.stds + self.means
        level = torch.where(self.logs, torch.where(self.logs, raw, 0.0).exp(), raw)
        rates = as_rhs(self.terms, self._timed)(self.start + self.unit * t, level)
        # d log y = dy / y
        rates = rates / torch.where(self.logs, level, 1.0) * self.unit / self.stds
        if not self.unobserved:
            return rates
        return torch.cat([rates, rates.new_zeros(*rates.shape[:-1], self.unobserved)], -1)
