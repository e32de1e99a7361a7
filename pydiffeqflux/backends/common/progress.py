"""The progress bar of a solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(wanted: bool, t0: float, t1: float) -> Iterator[Callable[[float], None] | None]:
    """A function to report the current time to, or None where no bar is wanted."""
    if not wanted:
        yield None
        return
    from tqdm.auto import tqdm

    with tqdm(total=100.0, desc="solve", unit="%", bar_format="{desc}: {percentage:5.1f}%|{bar}| [{elapsed}]") as bar:

        def report(t: float) -> None:
            bar.update(max(0.0, 100.0 * (t - t0) / (t1 - t0) - bar.n))

        yield report
