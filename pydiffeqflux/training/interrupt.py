"""Ctrl-C that waits for the end of an epoch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


class FitInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and can be resumed.

    Attributes:
        checkpoint: where the state after the last epoch is.
        epoch: how many epochs that is.
    """

    def __init__(self, checkpoint: Path, epoch: int, epochs: int):
        super().__init__(
            f"stopped after {epoch} of {epochs} epochs; {checkpoint} holds the state: resume with the same arguments"
            f" and resume=True (--resume)."
        )
        self.checkpoint, self.epoch, self.epochs = checkpoint, epoch, epochs


class Flag:
    """Whether Ctrl-C was pressed."""

    raised = False


@contextlib.contextmanager
def deferred_interrupt() -> Iterator[Flag]:
    """The first Ctrl-C only raises a flag; a second one interrupts at once.

    Signals reach the main thread only, and a program with a handler of its own keeps it: in both cases the
    flag is never raised and Ctrl-C does what it did before.
    """
    flag = Flag()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield flag
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if flag.raised:
            signal.default_int_handler(number, frame)
        flag.raised = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
