"""Reading and writing what a run needs to go on, and the trained module; never a half-written or foreign one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, DataFileNotFoundError
from .delayed import FittedDDE
from .files import write_all
from .known import digest
from .model import FittedODE
from .options import FitOptions
from .scaling import Scaling
from .series import Series
from .stochastic import FittedSDE

CHECKPOINT, MODEL = "checkpoint.pt", "model.pt"
_FORMATS = {CHECKPOINT: "pydiffeqflux fit checkpoint 1", MODEL: "pydiffeqflux fitted module 1"}


def to_bytes(name: str, content: Mapping[str, Any]) -> bytes:
    """The file ``name`` (CHECKPOINT or MODEL) as bytes."""
    buffer = io.BytesIO()
    torch.save({"format": _FORMATS[name], **content}, buffer)
    return buffer.getvalue()


def read(path: Path) -> dict[str, Any]:
    """The content of a file written by :func:`to_bytes`.

    Raises:
        DataFileNotFoundError: it is not there.
        CheckpointError: it is damaged, or something else.
    """
    kind = path.name if path.name in _FORMATS else MODEL
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataFileNotFoundError(f"there is no {path}; fit first, or give the folder that a fit wrote.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:  # torch.load does not look at the checksums
            spoiled = archive.testzip()
        content = None if spoiled else torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception:  # damage can surface as almost any exception (zip, pickle, unicode, ...)
        content = None
    if content is None:
        raise CheckpointError(f"{path} is damaged or is not a file that pydiffeqflux wrote; delete it and fit again.")
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != _FORMATS[kind]:
        raise CheckpointError(f"{path} holds {found or 'something else'!r}; expected {_FORMATS[kind]!r}.")
    return content


class CheckpointFile:
    """``checkpoint.pt`` in a folder, tied to one series and one set of options."""

    def __init__(self, folder: Path, series: Series, options: FitOptions):
        self.path = folder / CHECKPOINT
        self._identity: dict[str, Any] = {
            "data": series.digest,
            "options": options.as_dict(),
            "known": digest(options.known),
        }
        #: A hash of the known terms' file, as it is when the run starts.
        self.known: str | None = self._identity["known"]
        self._before = self.path.read_bytes() if self.path.is_file() else None
        self._touched = False

    def content(self, state: Mapping[str, Any], *, finished: bool) -> bytes:
        """The file's bytes for a state of the run."""
        return to_bytes(CHECKPOINT, {**self._identity, "finished": finished, "state": dict(state)})

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the state of an unfinished run."""
        write_all(self.path.parent, {CHECKPOINT: self.content(state, finished=False)})
        self._touched = True

    def load(self) -> dict[str, Any]:
        """The saved state.

        Raises:
            DataFileNotFoundError: there is none.
            CheckpointError: it is damaged, or of a run with other data or options (named in the message).
        """
        content = read(self.path)
        try:
            saved, options, state, known = (content[k] for k in ("data", "options", "state", "known"))
        except KeyError as error:
            raise CheckpointError(f"{self.path} lacks {error}; delete it and fit again.") from None
        if saved != self._identity["data"]:
            raise CheckpointError(
                f"{self.path} belongs to a fit of other data (or other columns); resume with the data that it was"
                f" started with, or give another output folder."
            )
        mine = self._identity["options"]
        differing = [f"{k}={options.get(k)!r} there, {v!r} now" for k, v in mine.items() if options.get(k) != v]
        if differing:
            raise CheckpointError(
                f"{self.path} belongs to a fit with other options ({'; '.join(differing)}); resume with the same"
                f" ones, or give another output folder."
            )
        if known != self._identity["known"]:
            raise CheckpointError(
                f"{self.path} belongs to a fit with other known terms: the file of known={options['known']!r} has"
                f" changed since; put it back, or give another output folder."
            )
        return dict(state)

    def refuse_to_overwrite(self) -> None:
        """An unfinished run is somebody's work: it is not overwritten by accident.

        Raises:
            CheckpointError: there is an unfinished (or unreadable) checkpoint.
        """
        if self._before is None:
            return
        try:
            content = read(self.path)
            epoch = None if content["finished"] else int(content["state"]["epoch"])
        except (CheckpointError, KeyError):
            raise CheckpointError(
                f"{self.path} cannot be read as a checkpoint; delete it, start over it with overwrite (--overwrite),"
                f" or give another output folder."
            ) from None
        if epoch is not None:
            raise CheckpointError(
                f"{self.path} holds an unfinished run (after {epoch} epochs): continue it with resume (--resume),"
                f" start over with overwrite (--overwrite), or give another output folder."
            )

    def put_back(self) -> None:
        """After a failure: the checkpoint is what it was before this run."""
        if not self._touched:
            return
        if self._before is None:
            self.path.unlink(missing_ok=True)
        else:
            write_all(self.path.parent, {CHECKPOINT: self._before})


def load(path: str | Path, *, known: str | None = None) -> FittedODE | FittedDDE | FittedSDE:
    """The module that a fit wrote into a folder.

    Args:
        path: the folder, or its ``model.pt``.
        known: where the known terms of a universal ODE are now, ``FILE.py:NAME``, if that file has been moved. It is
            run, as it was for the fit.

    Returns:
        a :class:`FittedODE` or :class:`FittedDDE`: ``module()`` is the trajectory in data units at the series' times,
        ``module(times)`` at others; or a :class:`FittedSDE`, whose ``module()`` is the mean of its paths.

    Raises:
        DataFileNotFoundError: there is none, or its known terms are not where they were.
        CheckpointError: it is damaged, or the file of its known terms has changed.
    """
    path = Path(path)
    content = read(path / MODEL if path.is_dir() else path)
    try:
        config, weights = dict(content["config"]), content["weights"]
        if config.get("known") is not None:
            config["known"] = config["known"] if known is None else known
            if digest(config["known"]) != content["known"]:
                raise CheckpointError(
                    f"the known terms of {path}, {config['known']}, have changed since the fit; put the file back, or"
                    f" say where it is now (known='FILE.py:NAME')."
                )
        kind: Any = {"sde": FittedSDE, "dde": FittedDDE}.get(config.get("model", "node"), FittedODE)
        module: FittedODE | FittedDDE | FittedSDE = kind(scaling_from(config.pop("scaling")), **config)
        module.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not describe a fitted module ({error}); fit again.") from None
    return module


def scaling_from(units: Mapping[str, Any]) -> Scaling:
    """A scaling from its fields, tuples having become lists on the disk."""
    columns: dict[str, Any] = {name: tuple(units[name]) for name in ("logs", "means", "stds")}
    return Scaling(**columns, time_start=units["time_start"], time_unit=units["time_unit"])
