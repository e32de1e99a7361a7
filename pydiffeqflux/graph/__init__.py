"""Trace once, run anywhere: a right-hand side as small programs that every compiled engine can translate.

``trace`` (torch function -> core ATen graphs), ``table`` and ``operators`` (what each operator means), ``lower``
(graph -> program), ``program`` and ``expr`` (loops over scalar expressions: what an emitter translates), ``kernels``
(the set of programs that a solver wants). Nothing here knows of Julia or of any compiler.
"""

from __future__ import annotations

from .kernels import Kernels, kernels
from .program import Program

__all__ = ["Kernels", "Program", "kernels"]
