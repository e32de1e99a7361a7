"""Compiled code on disk: found again, shared between processes, and none the worse for damage."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from pydiffeqflux.backends.compiled import store, toolchain

SOURCE = "def f(y: Reals, out: Reals) -> None:\n    out[0] = tanh(y[0]) + real({})\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYDIFFEQFLUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "_loaded", {})
    return tmp_path / "cache"


def builds(source: str, code: bytes = b"code") -> tuple[bytes, int]:
    """What is fetched, and how often it had to be built."""
    calls = []
    fetched = store.fetch(source, "this machine", lambda: calls.append(1) or code)  # type: ignore[func-returns-value]
    return fetched, len(calls)


def test_built_once() -> None:
    assert builds("a") == (b"code", 1)
    assert builds("a") == (b"code", 0)
    assert builds("b", b"other") == (b"other", 1)


def test_another_processor_has_code_of_its_own() -> None:
    assert store.path_of("a", "this") != store.path_of("a", "that")


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 200])
def test_damaged_files_are_written_anew(folder: Path, damage: bytes) -> None:
    builds("a")
    (file,) = folder.iterdir()
    file.write_bytes(damage)
    assert builds("a") == (b"code", 1)
    assert builds("a") == (b"code", 0)


def test_a_flipped_bit_is_noticed(folder: Path) -> None:
    builds("a")
    (file,) = folder.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    assert builds("a") == (b"code", 1)


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PYDIFFEQFLUX_CACHE", str(tmp_path / "file" / "cache"))
    assert builds("a") == (b"code", 1)
    assert builds("a") == (b"code", 1)


def test_deleting_the_folder(folder: Path) -> None:
    first = toolchain.kernels([SOURCE.format(1)], False)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    toolchain._loaded.clear()
    assert toolchain.kernels([SOURCE.format(1)], False).address("f") != first.address("f")
    assert len(list(folder.iterdir())) == 1


def test_no_half_written_files_are_left(folder: Path) -> None:
    toolchain.kernels([SOURCE.format(2)], True)
    assert [file.suffix for file in folder.iterdir()] == [".o"]


def test_long_compilations_are_mentioned(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(toolchain, "LONG", 0.0)
    with caplog.at_level(logging.WARNING, "pydiffeqflux"):
        toolchain.kernels([SOURCE.format(3)], False)
    assert "compiling a model's kernels took" in caplog.text
    caplog.clear()
    toolchain._loaded.clear()
    toolchain.kernels([SOURCE.format(3)], False)  # from disk
    assert not caplog.text


def test_processes_at_the_same_time(folder: Path) -> None:
    program = (
        "import ctypes\n"
        "from pydiffeqflux.backends.compiled import toolchain\n"
        "x, out = ctypes.c_double(0.5), ctypes.c_double()\n"
        f"code = toolchain.kernels([{SOURCE.format(4)!r}], False)\n"
        "f = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(code.address('f'))\n"
        "f(ctypes.addressof(x), ctypes.addressof(out))\n"
        "print(out.value)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0].strip() for process in running}
    assert said == {"4.46211715726001"}
    assert len(list(folder.iterdir())) == 1
