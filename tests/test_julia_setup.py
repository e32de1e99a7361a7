"""Finding a Julia, and saying what is missing: what holds on a machine without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import pydiffeqflux as pdf
from pydiffeqflux.backends.julia import bundle, configuration, setup
from pydiffeqflux.backends.julia.configuration import Configuration
from pydiffeqflux.backends.julia.doctor import examine
from pydiffeqflux.cli import main
from pydiffeqflux.errors import BackendUnavailableError, ConfigurationError, InvalidArgumentError

SOLVE = """
import torch, pydiffeqflux as pdf
try:
    pdf.solve(pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0)), backend="julia")
except pdf.errors.BackendUnavailableError as why:
    print(why)
"""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file that is not there, and no Julia in the environment."""
    file = tmp_path / "julia.json"
    monkeypatch.setenv(configuration.VARIABLE, str(file))
    for name in ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return file


def test_without_a_julia_the_error_says_what_to_do(nowhere: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SOLVE], capture_output=True, text=True, env=dict(os.environ))
    assert "not set up on this machine" in done.stdout, done.stderr
    assert "pydiffeqflux setup-julia" in done.stdout
    assert "pydiffeqflux doctor" in done.stdout
    assert "backend='torch'" in done.stdout


def test_importing_the_package_starts_nothing() -> None:
    code = "import sys, pydiffeqflux; assert 'juliacall' not in sys.modules and 'juliapkg' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_configuration_is_remembered(nowhere: Path) -> None:
    assert configuration.read() is None
    chosen = Configuration("/usr/bin/julia", "/some/project", "/some/depot:", True)
    assert configuration.write(chosen) == nowhere
    assert configuration.read() == chosen
    assert [p.name for p in nowhere.parent.iterdir()] == [nowhere.name]  # no draft left behind


@pytest.mark.parametrize("text", ["{", "[]", '{"julia": '])
def test_a_damaged_configuration_is_named(nowhere: Path, text: str) -> None:
    nowhere.write_text(text)
    with pytest.raises(ConfigurationError, match=r"julia\.json is not a configuration.*setup-julia"):
        configuration.read()


def test_a_configuration_that_cannot_be_written(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = nowhere.parent / "file"
    blocker.write_text("")
    monkeypatch.setenv(configuration.VARIABLE, str(blocker / "julia.json"))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        configuration.write(Configuration())


def test_setup_names_what_is_not_there(nowhere: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"julia='no-such-julia' is not an executable"):
        setup.point_at("no-such-julia", str(tmp_path), None, print)
    with pytest.raises(InvalidArgumentError, match=r"is not a folder with a Project\.toml"):
        setup.point_at(sys.executable, str(tmp_path), None, print)
    assert not nowhere.exists()


def test_setup_says_what_julia_said(nowhere: Path, tmp_path: Path) -> None:
    (tmp_path / "Project.toml").write_text('[deps]\nPyDiffEqFlux = "x"\n')
    with pytest.raises(BackendUnavailableError, match="Julia failed at"):  # Python is no Julia, and says so
        setup.point_at(sys.executable, str(tmp_path), None, lambda line: None)
    assert not nowhere.exists()


def test_setup_adds_cuda_where_it_is_missing(nowhere: Path, tmp_path: Path) -> None:
    project = tmp_path / "Project.toml"
    project.write_text('[deps]\nPyDiffEqFlux = "x"\n')
    with pytest.raises(BackendUnavailableError, match=r'Julia failed at `import Pkg; Pkg.add\(name = "CUDA"'):
        setup.point_at(sys.executable, str(tmp_path), None, lambda line: None, cuda=True)
    project.write_text(f'[deps]\nPyDiffEqFlux = "x"\nCUDA = "{bundle.CUDA}"\n')
    with pytest.raises(BackendUnavailableError, match="Julia failed at `import PythonCall"):
        setup.point_at(sys.executable, str(tmp_path), None, lambda line: None, cuda=True)
    command = ["setup-julia", "--cuda", "--julia", sys.executable, "--project", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code != 0 and "Julia failed at `import PythonCall" in result.output
    assert not nowhere.exists()


def test_cuda_is_a_package_that_ours_knows() -> None:
    said = (bundle.folder() / "Project.toml").read_text()
    assert f'[weakdeps]\nCUDA = "{bundle.CUDA}"' in said
    assert (bundle.folder() / "ext" / "PyDiffEqFluxCUDAExt.jl").is_file()


def test_the_command_wants_both_or_neither(nowhere: Path) -> None:
    result = CliRunner().invoke(main, ["setup-julia", "--julia", sys.executable])
    assert result.exit_code == 2
    assert "go together" in result.output


def test_doctor_stops_at_what_is_missing(nowhere: Path) -> None:
    findings = list(examine(trial=False))
    assert [f.ok for f in findings] == [True, True, False]
    assert findings[-1].what == "configuration"
    assert "setup-julia" in findings[-1].mend


def test_doctor_exits_with_one(nowhere: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", "--no-trial"])
    assert result.exit_code == 1
    assert "cannot run" in result.output


def test_doctor_on_a_julia_that_is_gone(nowhere: Path) -> None:
    nowhere.write_text(json.dumps({"julia": "/no/such/julia", "project": "/no/such/project"}))
    last = list(examine(trial=False))[-1]
    assert (last.what, last.ok) == ("Julia", False)
    assert "/no/such/julia is not there" in last.found


def test_doctor_looks_where_a_solve_would(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "/no/such/julia")
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", "/no/such/project")
    found = list(examine())
    assert "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT, in the environment" in found[-2].found
    assert (found[-1].what, found[-1].ok) == ("Julia", False)  # and no trial of what cannot run
    assert "correct PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT; or unset them" in found[-1].mend


def test_doctor_ends_with_what_to_do(nowhere: Path) -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "What to do:\n  configuration: run `pydiffeqflux setup-julia`, which downloads" in result.output


def test_the_bundled_package_is_there() -> None:
    assert (bundle.folder() / "src" / "PyDiffEqFlux.jl").is_file()
    assert bundle.field("uuid") == "52e3a552-d027-46c9-9dea-b80d72a74f65"


@pytest.mark.julia
def test_doctor_on_the_julia_of_this_machine() -> None:
    assert all(f.ok for f in examine(trial=False))


@pytest.mark.julia
@pytest.mark.slow
def test_doctor_tries_a_gradient() -> None:
    last = list(examine())[-1]
    assert (last.what, last.ok, last.found) == ("trial", True, "a solve and its gradient")


def test_solving_natively_needs_none_of_it(nowhere: Path) -> None:
    sol = pdf.solve(pdf.ODEProblem(lambda t, y: -y, torch.ones(1), (0.0, 1.0)))
    assert sol.stats.backend == "torch"
