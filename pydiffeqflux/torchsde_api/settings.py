"""torchsde's names of methods, noises, interpretations and areas, as its ``settings`` has them."""

from __future__ import annotations

from torchsde.settings import LEVY_AREA_APPROXIMATIONS, METHOD_OPTIONS, METHODS, NOISE_TYPES, SDE_TYPES

__all__ = ["LEVY_AREA_APPROXIMATIONS", "METHODS", "METHOD_OPTIONS", "NOISE_TYPES", "SDE_TYPES"]
