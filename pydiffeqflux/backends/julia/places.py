"""Where a right-hand side's arrays lie: in the CPU's memory, or on a device that a Julia package knows.

Tensors on a GPU cross over as those on the CPU do: by their address, to which nothing is copied (a DLPack capsule would
hold that address, too). torch and CUDA.jl use the same context of a device, but streams of their own: before Julia is
called torch's is waited for (:meth:`Place.ready`), and before Julia returns, its own (``settle`` in ``julia/src``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ...errors import BackendUnavailableError, JuliaError
from .session import Session

#: The Julia package for a type of torch device; the CPU needs none.
_PACKAGES: dict[str, str | None] = {"cpu": None, "cuda": "CUDA"}

_HOW = {"CUDA": "run `pydiffeqflux setup-julia --cuda`, which adds CUDA.jl"}
_ELSE = "add it to the project that `pydiffeqflux doctor` names"


class Place:
    """A device on which Julia solves with arrays of a package."""

    def __init__(self, session: Session, device: torch.device, package: str):
        self.device, self.package = device, package
        try:
            self.handle: int = session.call("bridge_place", package, device.index or 0)
        except JuliaError as why:
            if "no device: " not in str(why):
                raise
            said, how = str(why).split("no device: ", 1)[1], _HOW.get(package, _ELSE)
            raise BackendUnavailableError(
                f"backend='julia' with a state on {device}: {said}. Way out: {how}; or move the problem to the CPU"
                f" (y0.cpu() and the model's .cpu()), or solve with backend='torch'."
            ) from why

    def __str__(self) -> str:
        return f"{self.device} by {self.package}.jl"

    def ready(self) -> None:
        """Wait until what torch was told to write here is written."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def package_of(device: torch.device) -> str | None:
    """The Julia package whose arrays stand for tensors of this device; None: plain memory.

    Raises:
        KeyError: there is none.
    """
    return _PACKAGES[device.type]


@contextlib.contextmanager
def taken_for(device: str, package: str | None) -> Iterator[None]:
    """Have tensors of a type of device, the CPU's for one, solved with a package's arrays (None: in plain memory).

    For tests: the arrays of JLArrays refuse whatever a GPU's refuse, and lie in the CPU's memory.
    """
    before = dict(_PACKAGES)
    _PACKAGES[device] = package
    try:
        yield
    finally:
        _PACKAGES.clear()
        _PACKAGES.update(before)


class Places:
    """The places of one session, each made once."""

    def __init__(self, session: Session):
        self._session = session
        self._known: dict[tuple[torch.device, str], Place] = {}

    def of(self, device: torch.device) -> Place | None:
        """The place of a device; None for the CPU.

        Raises:
            BackendUnavailableError: the Julia package that it takes is missing, or finds no device.
        """
        package = package_of(device)
        if package is None:
            return None
        if (device, package) not in self._known:
            self._known[device, package] = Place(self._session, device, package)
        return self._known[device, package]
