"""DiffEqFlux's ``collocate_data``."""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import DtypeError, UnsupportedError
from ..session import session


def collocated(data: Tensor, t: Tensor, kernel: str, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Rates and smoothed states of ``data (n, d)`` at ``t (n,)``.

    Raises:
        UnsupportedError: what DiffEqFlux has wrong, or not at all.
        DtypeError: numbers that Julia is not given.
    """
    if kernel == "silverman":
        raise UnsupportedError(
            "kernel='silverman' on backend='diffeqflux': DiffEqFlux's does not integrate to one; leave backend out."
        )
    if data.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(
            "data requires a gradient, and DiffEqFlux's collocate_data writes into memory, which Zygote does not"
            " follow: detach it, or leave backend out."
        )
    if data.dtype not in (torch.float32, torch.float64) or data.device.type != "cpu":
        raise DtypeError(
            f"backend='diffeqflux' takes data of float32 and float64 on the CPU, and these are {data.dtype} on"
            f" {data.device}: convert them, or leave backend out."
        )
    values, times = data.detach().contiguous(), t.to(data.dtype).contiguous()
    du, u = torch.empty_like(values), torch.empty_like(values)
    session().call(
        "bridge_collocate",
        str(data.dtype).removeprefix("torch."),
        values.data_ptr(),
        *values.shape,
        times.data_ptr(),
        f"{kernel.title()}Kernel",
        bandwidth,
        du.data_ptr(),
        u.data_ptr(),
    )
    return du, u
