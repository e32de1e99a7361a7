"""What the documents say is so: code runs, commands are CI's, links lead somewhere, lists are complete."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from packaging.requirements import Requirement

import pydiffeqflux as pdf
from pydiffeqflux import cli
from pydiffeqflux.methods import CATALOGUE
from pydiffeqflux.sensealg import ALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PYTHON_BLOCKS = [
    pytest.param(name, code, id=f"{name}-{i}")
    for name in DOCUMENTS
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.M | re.S))
]
COMMANDS = re.findall(r"^```sh\n(.*?)\n```$", README, re.M | re.S)


def test_there_is_code_to_run() -> None:
    assert len(PYTHON_BLOCKS) >= 5


@pytest.mark.parametrize(("name", "code"), PYTHON_BLOCKS)
def test_code_in_documents_runs(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


def test_two_commands_of_one_line_do_the_setup() -> None:
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        assert "\n" not in command
        assert command.startswith("python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e ")
        assert "://" not in command and "index" not in command  # whichever registry the user has set up
        # A shell reads it as it stands.
        subprocess.run(["bash", "-n", "-c", command], check=True)
    assert COMMANDS[1].endswith('-e ".[test]" && pytest')


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"^command=\$\(grep -E '(.*)' README\.md\)$", script, re.M)
    assert found is not None
    pattern = found[1]
    done = subprocess.run(["grep", "-E", pattern, "README.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [COMMANDS[1]]
    assert re.search(r'^step tests "\$command"$', script, re.M)
    assert "set -euo pipefail" in script


def test_readmes_main_job_fits_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(COMMANDS[0].rsplit(" && ", 1)[1])
    assert words[0] == "pydiffeqflux"
    words[words.index("--out") + 1] = str(tmp_path / "out")
    done = CliRunner().invoke(cli.main, [*words[1:], "--epochs", "2"])
    assert done.exit_code == 0, done.output
    for name in ("fit.png", "loss.png", "model.pt", "report.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
        assert name in README


def test_constraints_pin_what_the_package_allows() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    asked = {}
    for requirement in map(Requirement, (line for group in groups for line in group)):
        asked.setdefault(requirement.name, requirement.specifier)
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            (only,) = pin.specifier  # one version each: a pin; and no option of pip's among them
            assert only.operator == "=="
            pins[pin.name] = only.version
    assert pins["torch"] == "2.13.0"
    for name, version in pins.items():
        assert asked[name].contains(version), f"{name}=={version} is outside pyproject's {name}{asked[name]}"
    # Users are not pinned: a library that asks for one torch only cannot be combined with others.
    assert "==" not in str(asked["torch"])


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        at = (ROOT / name).parent / path if path else ROOT / name
        assert at.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(at.read_text()), f"{name} links to {target}"


def test_pictures_are_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert len(shown) >= 5
    for picture in shown:
        assert (ROOT / picture).stat().st_size < 150_000, picture


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.name)
def test_every_method_is_in_the_readme(kind: type[pdf.Method]) -> None:
    assert f"`{kind.name}`" in README


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_sensealg_is_in_the_readme(kind: type[pdf.SenseAlg]) -> None:
    assert f"`{kind.__name__}()`" in README


def test_the_map_is_of_this_place() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:pydiffeqflux|tests|examples|benchmarks|data|docs)/[\w/]*)`", text))
    assert len(named) >= 8
    for folder in named:
        assert (ROOT / folder).is_dir(), folder
    eager = ROOT / "pydiffeqflux" / "backends" / "eager"
    for folder in re.findall(r"\b(rk|rosenbrock|sdirk|bdf|fixed|per_sample|adjoints)/", text):
        assert (eager / folder).is_dir(), folder
    folders = {p.name for p in eager.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert all(f"{name}/" in text for name in folders)
    packages = {p.name for p in (ROOT / "pydiffeqflux").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert all(f"`pydiffeqflux/{name}/`" in text for name in packages)


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"^## {re.escape(pdf.__version__)}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
