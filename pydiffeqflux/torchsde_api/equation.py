"""An object with torchsde's methods (``f``, ``g``, ``f_and_g``, ``g_prod``, ``f_and_g_prod``) as an equation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends.common.rhs import Scalar
from ..backends.common.sde import Sde
from ..errors import InvalidArgumentError

#: The methods that an equation may have, by the keys of ``names`` that give them other names.
ROLES = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}
Function = Callable[..., Any]


def functions_of(sde: Any, names: dict[str, str]) -> dict[str, Function]:
    """The methods that ``sde`` has, by torchsde's names for them."""
    found = {}
    for key, role in ROLES.items():
        function = getattr(sde, names.get(key, role), None)
        if function is not None:
            found[role] = function
        elif key in names:
            raise InvalidArgumentError(f"names[{key!r}]={names[key]!r}: the equation has no such method.")
    return found


class UserSde(Sde):
    """The equation; a method that is not there is made of those that are."""

    def __init__(self, functions: dict[str, Function], like: Tensor, noise: str, interpretation: str, m: int):
        super().__init__(self._drift, self._diffusion, like, noise, interpretation)
        self.own, self.m = functions, m

    def _drift(self, t: Tensor, y: Tensor) -> Tensor:
        if "f" in self.own:
            return self.own["f"](t, y)
        if "f_and_g" in self.own:
            return self.own["f_and_g"](t, y)[0]
        return self.own["f_and_g_prod"](t, y, y.new_zeros(y.shape[0], self.m))[0]

    def _diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        if "g" in self.own:
            return self.own["g"](t, y)
        if "f_and_g" in self.own:
            return self.own["f_and_g"](t, y)[1]
        raise InvalidArgumentError(
            "this method needs the diffusion itself, and the equation has neither g nor f_and_g, only products with it:"
            " add one, or use 'euler', 'midpoint', 'heun' or 'euler_heun'."
        )

    def both(self, t: Scalar, y: Tensor) -> tuple[Tensor, Tensor]:
        if "f_and_g" not in self.own:
            return super().both(t, y)
        self.nf, self.ng = self.nf + 1, self.ng + 1
        f, g = self.own["f_and_g"](self.time(t), y)
        return f, g

    def product(self, t: Scalar, y: Tensor, w: Tensor) -> Tensor:
        if "g_prod" not in self.own:
            return super().product(t, y, w)
        self.ng += 1
        return self.own["g_prod"](self.time(t), y, w)

    def both_product(self, t: Scalar, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        if "f_and_g_prod" in self.own:
            self.nf, self.ng = self.nf + 1, self.ng + 1
            f, noise = self.own["f_and_g_prod"](self.time(t), y, w)
            return f, noise
        if "f" in self.own and "g_prod" in self.own:
            return self(t, y), self.product(t, y, w)
        f, g = self.both(t, y)
        return f, self.times(g, w)


def with_log_ratio(functions: dict[str, Function], noise: str) -> dict[str, Function]:
    """The same equation with one more entry: the log-ratio of the path's law to that with the drift ``h``.

    That entry grows at the rate ``|u|^2 / 2`` with ``g u = f - h``: Girsanov's theorem, as in Li, Wong, Chen &
    Duvenaud (2020), section 5.

    Raises:
        InvalidArgumentError: one of ``f``, ``g`` and ``h`` is missing.
    """
    missing = [role for role in ("f", "g", "h") if role not in functions]
    if missing:
        raise InvalidArgumentError(
            f"logqp=True needs the drift f, the diffusion g and the prior's drift h; the equation lacks"
            f" {', '.join(missing)} (names= says where else they are)."
        )

    def both(t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        y = z[:, :-1]
        f, g, h = (functions[role](t, y) for role in ("f", "g", "h"))
        if noise == "diagonal":
            least = torch.full_like(g, 1e-7) * torch.where(g < 0, -1.0, 1.0)
            u = (f - h) / torch.where(g.detach().abs() > 1e-7, g, least)
        else:
            u = (torch.linalg.pinv(g) @ (f - h).unsqueeze(-1)).squeeze(-1)
        rate = 0.5 * (u * u).sum(1, keepdim=True)
        return torch.cat([f, rate], 1), torch.cat([g, torch.zeros_like(g[:, :1])], 1)

    return {"f": lambda t, z: both(t, z)[0], "g": lambda t, z: both(t, z)[1], "f_and_g": both}
