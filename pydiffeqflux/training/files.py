"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..errors import OutputError


@contextlib.contextmanager
def output_folder(path: Path) -> Iterator[None]:
    """Make ``path`` and make sure of it before any work; a folder that stays empty is taken away again.

    Raises:
        OutputError: it cannot be made, or nothing can be written into it.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        _remove_empty(made)
        raise _cannot_write(path, error) from None
    try:
        yield
    finally:
        _remove_empty(made)


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files so that each is replaced in one go, and none before all are on the disk.

    Raises:
        OutputError: one of them cannot be written; then none has changed.
    """
    staged: dict[str, Path] = {}
    try:
        for name, content in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
            staged[name] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
        for name in contents:
            if (folder / name).is_dir():  # found out before the first replacement, not half-way
                raise IsADirectoryError(None, "it is a folder", str(folder / name))
        for name, temporary_path in list(staged.items()):
            os.replace(temporary_path, folder / name)
            del staged[name]
    except OSError as error:
        raise _cannot_write(folder, error) from None
    finally:
        for leftover in staged.values():
            leftover.unlink(missing_ok=True)


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    where = error.filename2 or error.filename or folder
    return OutputError(
        f"cannot write into {folder}: {error.strerror or error} ({where}); give a folder that you may write to."
    )


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # innermost first
        with contextlib.suppress(OSError):
            folder.rmdir()


def _umask() -> int:
    """The process's file mode mask; mkstemp ignores it and makes files that nobody else can read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
