"""The Julia package that comes with this one, and what it asks of a Julia."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import BackendUnavailableError

#: Zygote, which DiffEqFlux needs, is tested up to this Julia.
JULIA = "1.11"

#: CUDA.jl, which is there only if asked for: its UUID. Which versions will do, the bundled package says.
CUDA = "052768ef-5323-5732-b1bb-66c8b64840ba"


def folder() -> Path:
    """The bundled Julia package: inside an installed wheel, or in the checkout of an editable install.

    Raises:
        BackendUnavailableError: it is in neither place.
    """
    package = Path(__file__).resolve().parents[2]
    for place in (package / "_julia", package.parent / "julia"):
        if (place / "src" / "PyDiffEqFlux.jl").is_file():
            return place
    raise BackendUnavailableError(
        f"the Julia package that belongs to pydiffeqflux is not where it was installed, {package}: install pydiffeqflux"
        f" again (pip install --force-reinstall pydiffeqflux)."
    )


def field(name: str) -> str:
    """``uuid`` or ``version`` of the bundled package."""
    found = re.search(rf'^{name} = "(.*)"$', (folder() / "Project.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, name
    return found[1]
