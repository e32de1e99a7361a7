"""Which methods this backend has, and how each is built."""

from __future__ import annotations

import functools
import importlib

from ... import methods
from ...errors import UnsupportedError
from ...methods import Method
from ...sde_methods import SDEMethod
from ..common.tolerances import Tolerances
from .rk.tableau import ExplicitRK
from .stepper import Stepper

#: The module in ``rk`` that holds each explicit method's tableau.
EXPLICIT = {
    methods.Tsit5: "tsit5",
    methods.Dopri5: "dopri5",
    methods.Dopri8: "dopri8",
    methods.Bosh3: "bosh3",
    methods.Heun: "heun",
    methods.Fehlberg2: "fehlberg2",
    methods.Vern7: "vern7",
    methods.Vern9: "vern9",
    methods.Euler: "euler",
    methods.Midpoint: "midpoint",
    methods.RK4: "rk4",
    methods.Heun2: "heun2",
    methods.Heun3: "heun3",
}


def stepper_for(method: Method, tol: Tolerances, *, batched: bool = False, second_order: bool = False) -> Stepper:
    """The stepper of ``method``.

    Args:
        method: from the catalogue.
        tol: the solve's tolerances, which implicit methods solve their equations to.
        batched: rows of the state are independent systems (one small Jacobian a row).
        second_order: keep second derivatives exact through implicit stages.

    Raises:
        UnsupportedError: a method that this backend does not have.
    """
    if isinstance(method, SDEMethod):
        from .sde.catalogue import scheme_for

        return scheme_for(method)
    module = EXPLICIT.get(type(method))
    if module is not None:
        return explicit(module)
    if isinstance(method, methods.AutoSwitch):
        from .auto_switch import AutoSwitchStepper

        return AutoSwitchStepper(
            stepper_for(method.nonstiff, tol),
            stepper_for(method.stiff, tol, batched=batched, second_order=second_order),
        )
    if not method.adaptive:
        from .fixed import fixed_stepper

        return fixed_stepper(method, batched=batched, second_order=second_order)
    if method.implicit:
        from .stiff import stiff_stepper

        return stiff_stepper(method, tol, batched=batched, second_order=second_order)
    raise UnsupportedError(f"method={method} does not exist on backend='torch'.")


@functools.cache
def explicit(module: str) -> ExplicitRK:
    """The stepper of the explicit tableau in ``rk/<module>.py`` (long tables: imported when first used)."""
    return ExplicitRK(importlib.import_module(f".rk.{module}", __package__).TABLEAU)
