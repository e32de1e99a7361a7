"""Where Julia is: what ``pydiffeqflux setup-julia`` found out once, in a file of the user's."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import click

from ...errors import ConfigurationError

#: Names another file than the one in the user's configuration folder.
VARIABLE = "PYDIFFEQFLUX_CONFIG"
#: juliacall's own, which come first where both are set.
VARIABLES = ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")


@dataclass(frozen=True)
class Configuration:
    """A Julia to use.

    Attributes:
        julia: the executable; None where juliapkg manages one.
        project: a Julia project that has PyDiffEqFlux; None where juliapkg manages one.
        depot: value for ``JULIA_DEPOT_PATH``; None leaves Julia's own.
        prefer: whether ``backend="auto"`` means Julia.
    """

    julia: str | None = None
    project: str | None = None
    depot: str | None = None
    prefer: bool = False


def from_environment() -> Configuration | None:
    """The Julia that juliacall's own variables name; None where they do not."""
    julia, project = (os.environ.get(name) for name in VARIABLES)
    return Configuration(julia, project) if julia and project else None


def path() -> Path:
    """The configuration file, there or not."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(click.get_app_dir("pydiffeqflux")) / "julia.json"


def read() -> Configuration | None:
    """What was set up; None where nothing was.

    Raises:
        ConfigurationError: the file cannot be read, or holds something else.
    """
    file = path()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as why:
        raise ConfigurationError(f"{file} cannot be read ({why}); {_REMEDY}") from why
    try:
        found = json.loads(text)
        known = {f.name for f in fields(Configuration)}
        return Configuration(**{key: value for key, value in found.items() if key in known})
    except (ValueError, TypeError, AttributeError) as why:
        raise ConfigurationError(f"{file} is not a configuration of pydiffeqflux ({why}); {_REMEDY}") from why


def write(configuration: Configuration) -> Path:
    """Remember a Julia, all at once or not at all.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(asdict(configuration), indent=2) + "\n", encoding="utf-8")
        draft.replace(file)
    except OSError as why:
        raise ConfigurationError(f"{file} cannot be written ({why}); name another by {VARIABLE}.") from why
    return file


_REMEDY = f"run `pydiffeqflux setup-julia` again, or name another file by {VARIABLE}."
