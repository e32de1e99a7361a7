"""The command line: what it prints, its exit status, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from pydiffeqflux.cli import main
from pydiffeqflux.training import load

ROOT = Path(__file__).parents[1]
DATA = str(ROOT / "data" / "lynx_hare.csv")
SMALL = ["--width", "8", "--depth", "1", "--epochs", "20"]


@pytest.fixture(autouse=True)
def threads_as_they_were():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def fit(out: Path, *more: str, data: str = DATA, time: str = "Year", state: str = "Hare,Lynx"):
    return run("fit", data, "--time", time, "--state", state, "--out", str(out), *SMALL, *more)


def test_fit_writes_everything_and_says_so(tmp_path):
    result = fit(tmp_path / "out", "--seed", "1", "--method", "dopri5", "--backend", "torch")
    assert result.exit_code == 0, result.output
    assert "Hare: R^2" in result.stdout and "Lynx: R^2" in result.stdout and "wrote fit.png" in result.stdout
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"fit.png", "loss.png", "model.pt", "report.json", "checkpoint.pt"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["arguments"]["seed"] == 1 and report["arguments"]["width"] == 8
    assert report["method"] == "dopri5" and report["backend"] == "torch"
    assert load(tmp_path / "out")().shape == (21, 2)


def test_the_options_of_fit_have_the_library_s_defaults():
    from pydiffeqflux.training import FitOptions

    defaults = {p.name: p.default for p in main.commands["fit"].params}
    for name, value in FitOptions().as_dict().items():
        assert defaults[name] == value, name


def test_column_names_may_be_quoted_or_given_one_by_one(tmp_path):
    rows = "\n".join(f"{i},{1 + i},{2 + i * i}" for i in range(6))
    data = tmp_path / "d.csv"
    data.write_text('t,"a, b",c\n' + rows)
    out = tmp_path / "out"
    result = run("fit", str(data), "--time", "t", "--state", '"a, b"', "--state", "c", "--out", str(out), *SMALL)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "report.json").read_text())["data"]["states"] == ["a, b", "c"]


def one_line(result) -> str:
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pydiffeqflux: error: ")
    assert result.stdout == ""
    return lines[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": "nowhere.csv"}, "there is no file nowhere.csv"),
        ({"time": "Yaer"}, "no column 'Yaer'. Did you mean 'Year'?"),
        ({"state": "Hare,Lynks"}, "no column 'Lynks'. Did you mean 'Lynx'?"),
        ({"state": "Hare,Hare"}, "more than once"),
    ],
)
def test_bad_data_is_one_line_and_status_2(tmp_path, change, words):
    assert words in one_line(fit(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1903,77.4", "1903,many", "row 4 (line 5): column 'Hare' holds 'many', which is not a number"),
        ("1903,77.4", "1903,", "row 4 (line 5): column 'Hare' is empty"),
        ("1903,77.4", "1903,nan", "row 4 (line 5): column 'Hare' holds 'nan'"),
        ("1903,", "1901,", "Year=1901 in row 4 follows 1902 in row 3"),
    ],
)
def test_bad_cells_are_one_line_that_names_the_row(tmp_path, old, new, words):
    data = tmp_path / "d.csv"
    data.write_text(Path(DATA).read_text().replace(old, new))
    assert words in one_line(fit(tmp_path / "out", data=str(data)))
    assert not (tmp_path / "out").exists()


def test_too_few_rows(tmp_path):
    data = tmp_path / "d.csv"
    data.write_text("\n".join(Path(DATA).read_text().splitlines()[:4]))
    assert "3 rows are too few" in one_line(fit(tmp_path / "out", data=str(data)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "tsit55"], "Did you mean 'tsit5'?"),
        (["--epochs", "0"], "epochs=0"),
        (["--lr", "-1"], "lr=-1.0"),
        (["--resume"], "checkpoint.pt"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, words):
    assert words in one_line(fit(tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_and_a_damaged_or_foreign_checkpoint(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write into" in one_line(fit(tmp_path / "file"))
    out = tmp_path / "out"
    assert fit(out).exit_code == 0
    assert "seed=0 there, 9 now" in one_line(fit(out, "--resume", "--seed", "9"))
    (out / "checkpoint.pt").write_bytes(b"PK")
    assert "damaged" in one_line(fit(out, "--resume"))


def test_an_unknown_backend_is_a_usage_error(tmp_path):
    result = fit(tmp_path / "out", "--backend", "jax")
    assert result.exit_code == 2 and "'jax' is not one of" in result.stderr


def test_a_terminal_shows_a_bar_with_the_loss_and_a_pipe_does_not(tmp_path, monkeypatch):
    assert fit(tmp_path / "pipe").stderr == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich takes this for a terminal
    shown = fit(tmp_path / "terminal").stderr
    assert "loss" in shown and "20/20" in shown and "one trajectory" in shown


def test_help_names_every_option():
    result = run("fit", "--help")
    assert result.exit_code == 0
    for option in ("--time", "--state", "--out", "--backend", "--method", "--width", "--epochs", "--seed", "--resume"):
        assert option in result.stdout


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT to another process")
def test_ctrl_c_says_how_to_resume_and_the_resumed_run_ends_as_the_straight_one(tmp_path, monkeypatch):
    monkeypatch.setattr("pydiffeqflux.backends.native.WARM_UP", 1000)  # as in the process that is interrupted
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = ["--time", "Year", "--state", "Hare,Lynx", "--width", "8", "--depth", "1", "--epochs", "80"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pydiffeqflux.cli", "fit", DATA, *options, "--out", str(out)]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert stdout == "" and "Traceback" not in stderr
    assert "of 80 epochs" in stderr and stderr.strip().endswith("--resume")
    assert {p.name for p in out.iterdir()} == {"checkpoint.pt"}
    resumed = run(*command[3:], "--resume")
    assert resumed.exit_code == 0, resumed.output
    straight = run("fit", DATA, *options, "--out", str(tmp_path / "straight"))
    assert straight.exit_code == 0, straight.output
    a, b = load(out).state_dict(), load(tmp_path / "straight").state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
