"""Which method for stochastic equations is built how."""

from __future__ import annotations

import importlib
from typing import Any

from .... import sde_methods as methods
from ....errors import UnsupportedError
from ....sde_methods import SDEMethod
from .euler_heun import EulerHeunScheme
from .euler_maruyama import EulerMaruyama
from .heun import HeunScheme
from .midpoint import LogOdeScheme, MidpointScheme
from .milstein import MilsteinScheme
from .reversible_heun import ReversibleHeunScheme
from .scheme import Halved, Scheme
from .sra import Sra
from .sri import Sri

_SCHEMES: dict[type[SDEMethod], type[Scheme]] = {
    methods.EM: EulerMaruyama,
    methods.Milstein: MilsteinScheme,
    methods.EulerHeun: EulerHeunScheme,
    methods.SDEHeun: HeunScheme,
    methods.SDEMidpoint: MidpointScheme,
    methods.LogODE: LogOdeScheme,
    methods.ReversibleHeun: ReversibleHeunScheme,
}
#: The module in ``tableaus`` of each stochastic Runge-Kutta method.
_SRA = {methods.SRA1: "sra1", methods.SRA3: "sra3", methods.SOSRA: "sosra"}
_SRI = {methods.SRIW1: "sriw1", methods.SRIW2: "sriw2", methods.SOSRI: "sosri"}


def scheme_for(method: SDEMethod) -> Scheme:
    """The stepper of ``method``.

    Raises:
        UnsupportedError: a method that this backend does not have.
    """
    kind = type(method)
    if kind in _SRA:
        return Sra(_tableau(_SRA[kind]), method.adaptive)
    if kind in _SRI:
        return Sri(_tableau(_SRI[kind]), method.adaptive)
    if kind not in _SCHEMES:
        raise UnsupportedError(f"method={method} does not exist on backend='torch'.")
    scheme = _SCHEMES[kind]()
    return Halved(scheme) if method.adaptive else scheme


def _tableau(name: str) -> Any:
    return importlib.import_module(f".tableaus.{name}", __package__).TABLEAU
