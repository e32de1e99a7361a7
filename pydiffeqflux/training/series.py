"""A time series as training wants it, and how one is read from a CSV file."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DataFileNotFoundError

#: Fewer points than this say nothing about a rate of change.
MIN_ROWS = 5


@dataclass(frozen=True)
class Series:
    """Observed states at increasing times, checked.

    Args:
        time_name: name of the time column.
        state_names: one name a state.
        times: ``(n,)`` strictly increasing; the spacing need not be even.
        values: ``(n, d)``.
        source: where the series comes from (a path, say), for reports.

    Raises:
        DataError: shapes that do not match, too few rows, entries that are not finite, or times that do
            not increase (the message names the row).

    Example:
        >>> import numpy as np
        >>> from pydiffeqflux.training import Series
        >>> s = Series("t", ("x",), np.arange(6.0), np.ones((6, 1)))
        >>> len(s), s.values.shape
        (6, (6, 1))
    """

    time_name: str
    state_names: tuple[str, ...]
    times: NDArray[np.float64]
    values: NDArray[np.float64]
    source: str = "arrays"

    def __post_init__(self) -> None:
        try:
            times = np.array(self.times, dtype=np.float64)
            values = np.array(self.values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"times and values must be arrays of numbers: {error}.") from None
        names = tuple(self.state_names)
        if times.ndim != 1 or values.shape != (len(times), len(names)) or not names:
            raise DataError(
                f"times of shape {times.shape} and values of shape {values.shape} do not make a series of"
                f" {len(names)} states ({', '.join(names)}); they must be (n,) and (n, {max(len(names), 1)})."
            )
        if len(times) < MIN_ROWS:
            raise DataError(f"{self.source}: {len(times)} rows are too few to fit; at least {MIN_ROWS} are needed.")
        for column, name in zip([times, *values.T], [self.time_name, *names], strict=True):
            bad = np.flatnonzero(~np.isfinite(column))
            if len(bad):
                raise DataError(
                    f"{self.source}: column {name!r} is not finite in row {bad[0] + 1} ({column[bad[0]]});"
                    f" fill the gap or drop that row (the spacing of the times need not be even)."
                )
        bad = np.flatnonzero(np.diff(times) <= 0)
        if len(bad):
            i = int(bad[0])
            raise DataError(
                f"{self.source}: times must increase, but {self.time_name}={times[i + 1]:g} in row {i + 2} follows"
                f" {times[i]:g} in row {i + 1}; sort the rows and drop repeated times."
            )
        for name, value in (("times", times), ("values", values), ("state_names", names)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def digest(self) -> str:
        """A hash of names and numbers: tells whether a checkpoint belongs to this series."""
        text = repr((self.time_name, self.state_names, self.values.shape)).encode()
        return hashlib.sha256(text + self.times.tobytes() + self.values.tobytes()).hexdigest()


def read_csv(path: str | Path, time: str, states: Sequence[str]) -> Series:
    """Read a time series from a CSV file with a header line.

    Columns are separated by commas, semicolons or tabs (told from the header); blank lines and lines
    that start with ``#`` are skipped; numbers use a decimal point. Other columns are ignored.

    Args:
        path: the file, UTF-8.
        time: name of the column with the times.
        states: names of the columns with the states.

    Raises:
        DataFileNotFoundError: no such file.
        DataError: a column that is not there (the nearest name is in the message), a cell that is empty or
            not a number, or what :class:`Series` refuses; rows are counted from 1 below the header.
    """
    path = Path(path)
    if not states:
        raise DataError("no state column was named; give one or more.")
    wanted = [time, *states]
    repeated = sorted({name for name in wanted if wanted.count(name) > 1})
    if repeated:
        raise DataError(
            f"column {repeated[0]!r} is asked for more than once among time and states: {', '.join(wanted)}."
        )
    rows = _rows(_text(path), path)
    try:
        _, header = next(rows)
    except StopIteration:
        raise DataError(f"{path} is empty; a header line with column names and one line a time are needed.") from None
    places = [_place(name, header, path) for name in wanted]
    table = []
    for number, (line, cells) in enumerate(rows, start=1):
        where = f"{path}, row {number} (line {line})"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}.")
        table.append([_number(cells[place], name, where) for place, name in zip(places, wanted, strict=True)])
    data = np.array(table, dtype=np.float64).reshape(len(table), len(wanted))
    return Series(time, tuple(states), data[:, 0], data[:, 1:], source=str(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataFileNotFoundError(f"there is no file {path}; give the path of a CSV file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file; export it as CSV (UTF-8).") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as a CSV file: {error.strerror or error}.") from None


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """``(line number, cells)`` of the header and each row."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    delimiter = max(",;\t", key=kept[0].count) if kept else ","
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not cells[0].lstrip().startswith("#"):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not a CSV file ({error}).") from None


def _place(name: str, header: list[str], path: Path) -> int:
    found = [i for i, column in enumerate(header) if column == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path} has {len(found)} columns named {name!r}; give each its own name.")
    lowered = {column.lower(): column for column in reversed(header)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f" Did you mean {lowered[close[0]]!r}?" if close else ""
    raise DataError(f"{path} has no column {name!r}.{hint} Its columns: {', '.join(header)}.")


def _number(cell: str, name: str, where: str) -> float:
    if not cell:
        raise DataError(
            f"{where}: column {name!r} is empty; fill the gap or drop that row (the spacing need not be even)."
        )
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{where}: column {name!r} holds {cell!r}, which is not a number.") from None
    if not math.isfinite(value):
        raise DataError(
            f"{where}: column {name!r} holds {cell!r}; fill the gap or drop that row (the spacing need not be even)."
        )
    return value
