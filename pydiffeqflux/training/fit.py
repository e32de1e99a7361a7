"""``fit``: train a neural ODE on a time series, safely."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, UnknownNameError
from .checkpoint import CHECKPOINT, MODEL, CheckpointFile, to_bytes
from .files import output_folder, write_all
from .interrupt import FitInterrupted, deferred_interrupt
from .options import FitOptions
from .recipe import Trainer
from .result import FitResult
from .series import Series

#: A checkpoint is written each time so many epochs are done (and when a run stops).
CHECKPOINT_EVERY = 25


@dataclass(frozen=True)
class Progress:
    """What training has come to: handed to ``fit(progress=...)`` after each epoch."""

    epoch: int
    epochs: int
    stage: str
    loss: float


def fit(
    series: Series,
    options: FitOptions | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **changes: Any,
) -> FitResult:
    """Fit a neural ODE to a time series: derivative matching, multiple shooting, one trajectory.

    What each stage does, and its sources, is written in :mod:`pydiffeqflux.training.recipe`; the model in
    :class:`FittedODE`. Two runs with the same series, options and machine give the same weights, bit for
    bit, whether or not one of them was interrupted and resumed.

    Args:
        series: the data, from :func:`read_csv` or arrays.
        options: a :class:`FitOptions`; ``**changes`` are its fields, over it.
        out: folder for ``model.pt``, ``report.json``, ``fit.png``, ``loss.png`` and, while training,
            ``checkpoint.pt``; made if need be. Nothing is written where None. The files of an earlier run are
            replaced when this one is finished, not before, and stay as they were when it fails.
        resume: go on from ``out``'s checkpoint.
        overwrite: start over where ``out`` holds an unfinished run.
        progress: called after each epoch.

    Raises:
        FitInterrupted: Ctrl-C (with ``out``; a ``KeyboardInterrupt``); the checkpoint is consistent.
        CheckpointError, DataFileNotFoundError: nothing to resume, or not of this run.
        OutputError: ``out`` cannot be written.
        SolveError: the trajectory could not be solved (``lr`` too large, say); nothing has changed on the disk.

    Example:
        >>> import numpy as np
        >>> from pydiffeqflux.training import Series, fit
        >>> t = np.linspace(0.0, 2.0, 9)
        >>> result = fit(Series("t", ("x",), t, np.exp(-t)[:, None]), epochs=20, width=8)
        >>> result.module().shape
        torch.Size([9, 1])
    """
    options = _options(options, changes)
    if out is None:
        if resume or overwrite:
            raise InvalidArgumentError("resume and overwrite need out, the folder with the checkpoint.")
        trainer = Trainer(series, options)
        trainer.match_derivatives()
        _train(trainer, progress, None)
        return _result(trainer, series, options)
    if resume and overwrite:
        raise InvalidArgumentError("resume=True continues a run, overwrite=True starts over; give one of them.")
    folder = Path(out)
    if resume:  # before a folder is made for it
        CheckpointFile(folder, series, options).load()
    with output_folder(folder):
        return _fit_into(folder, series, options, resume, overwrite, progress)


def _options(options: FitOptions | None, changes: dict[str, Any]) -> FitOptions:
    for name in changes:
        if name not in FitOptions.names():
            raise UnknownNameError("option", name, FitOptions.names())
    return replace(options or FitOptions(), **changes)


def _fit_into(
    folder: Path,
    series: Series,
    options: FitOptions,
    resume: bool,
    overwrite: bool,
    progress: Callable[[Progress], None] | None,
) -> FitResult:
    from .report import figures, json_bytes

    file = CheckpointFile(folder, series, options)
    if not (resume or overwrite):
        file.refuse_to_overwrite()
    try:
        trainer = Trainer(series, options)
        if resume:
            trainer.load_state_dict(file.load())
        else:
            trainer.match_derivatives()
        _train(trainer, progress, file)
        result = _result(trainer, series, options, resumed=resume)
        weights = {name: value.detach() for name, value in result.module.state_dict().items()}
        write_all(
            folder,
            {
                MODEL: to_bytes(MODEL, {"config": result.module.config(), "weights": weights}),
                **figures(result),
                "report.json": json_bytes(result.report),
                CHECKPOINT: file.content(trainer.state_dict(), finished=True),
            },
        )
    except Exception:
        file.put_back()
        raise
    return result


def _train(trainer: Trainer, progress: Callable[[Progress], None] | None, file: CheckpointFile | None) -> None:
    """Run the epochs that are left, writing checkpoints on the way."""
    before, began = trainer.seconds, time.perf_counter()

    def save() -> None:
        if file is not None:
            file.save(trainer.state_dict())

    if file is None:
        while not trainer.finished:
            _epoch(trainer, progress)
            trainer.seconds = before + time.perf_counter() - began
        return
    with deferred_interrupt() as flag:
        save()
        while not trainer.finished:
            _epoch(trainer, progress)
            trainer.seconds = before + time.perf_counter() - began
            if flag.raised or (trainer.epoch % CHECKPOINT_EVERY == 0 and not trainer.finished):
                save()
            if flag.raised:
                raise FitInterrupted(file.path, trainer.epoch, trainer.options.epochs)


def _epoch(trainer: Trainer, progress: Callable[[Progress], None] | None) -> None:
    stage = trainer.stage
    loss = trainer.run_epoch()
    if progress is not None:
        progress(Progress(trainer.epoch, trainer.options.epochs, stage, loss))


def _result(trainer: Trainer, series: Series, options: FitOptions, *, resumed: bool = False) -> FitResult:
    from .report import report_of

    return FitResult(trainer.module, series, options, trainer.history, report_of(trainer, series, resumed))
