"""``fit``: train a model of a time series, safely."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, UnknownNameError
from .checkpoint import CHECKPOINT, MODEL, CheckpointFile, to_bytes
from .delay_recipe import DelayTrainer
from .files import output_folder, write_all
from .interrupt import FitInterrupted, deferred_interrupt
from .likelihood import LikelihoodTrainer
from .options import FitOptions
from .recipe import Trainer
from .result import FitResult
from .run import Run
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
    """Fit a neural ODE, or a model of another family, to a time series.

    What is done, and its sources, is written in :mod:`pydiffeqflux.training.recipe` (derivative matching, multiple
    shooting, one trajectory), for ``"dde"`` in :mod:`pydiffeqflux.training.delay_recipe` and for ``"sde"`` in
    :mod:`pydiffeqflux.training.likelihood`; the models in :class:`FittedODE`, :class:`FittedDDE` and
    :class:`FittedSDE`. Two runs with the same series, options and machine give the same weights, bit for bit, whether
    or not one of them was interrupted and resumed.

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
        PhaseSpaceError, ShapeError, DataError: states or known terms that the family cannot take.
        UnsupportedError: a family, method and backend that do not go together.
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
        run = _run(series, options)
        run.begin()
        _train(run, progress, None)
        return _result(run, series, options)
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


def _run(series: Series, options: FitOptions) -> Run:
    kinds: dict[str, type[Run]] = {"sde": LikelihoodTrainer, "dde": DelayTrainer}
    kind: Callable[[Series, FitOptions], Run] = kinds.get(options.model, Trainer)
    return kind(series, options)


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
        run = _run(series, options)
        if resume:
            run.load_state_dict(file.load())
        else:
            run.begin()
        _train(run, progress, file)
        result = _result(run, series, options, resumed=resume)
        weights = {name: value.detach() for name, value in result.module.state_dict().items()}
        write_all(
            folder,
            {
                MODEL: to_bytes(MODEL, {"config": result.module.config(), "weights": weights, "known": file.known}),
                **figures(result),
                "report.json": json_bytes(result.report),
                CHECKPOINT: file.content(run.state_dict(), finished=True),
            },
        )
    except Exception:
        file.put_back()
        raise
    return result


def _train(run: Run, progress: Callable[[Progress], None] | None, file: CheckpointFile | None) -> None:
    """Run the epochs that are left, writing checkpoints on the way."""
    before, began = run.seconds, time.perf_counter()

    def save() -> None:
        if file is not None:
            file.save(run.state_dict())

    if file is None:
        while not run.finished:
            _epoch(run, progress)
            run.seconds = before + time.perf_counter() - began
        return
    with deferred_interrupt() as flag:
        save()
        while not run.finished:
            _epoch(run, progress)
            run.seconds = before + time.perf_counter() - began
            if flag.raised or (run.epoch % CHECKPOINT_EVERY == 0 and not run.finished):
                save()
            if flag.raised:
                raise FitInterrupted(file.path, run.epoch, run.options.epochs)


def _epoch(run: Run, progress: Callable[[Progress], None] | None) -> None:
    stage = run.stage
    loss = run.run_epoch()
    if progress is not None:
        progress(Progress(run.epoch, run.options.epochs, stage, loss))


def _result(run: Run, series: Series, options: FitOptions, *, resumed: bool = False) -> FitResult:
    from .report import report_of

    return FitResult(run.module, series, options, run.history, report_of(run, series, resumed))
