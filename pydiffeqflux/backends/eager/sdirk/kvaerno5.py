"""Kvaerno5: ESDIRK of order 5(4), seven stages, both solutions stiffly accurate.

A. Kvaerno, "Singly diagonally implicit Runge-Kutta methods with an explicit first stage", BIT Numer. Math. 44
(2004) 489-502. The embedded solution is the last stage but one. The paper has no dense output: between the steps
the cubic Hermite interpolant is used, of order 3. The third stage evaluates f at 1.23 of the step.
"""

from __future__ import annotations

from .tableau import EsdirkTableau, Row

_GAMMA = 0.26
_A6: Row = (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676)
_A7: Row = (
    0.13659751177640291,
    0.0,
    -0.05496908796538376,
    -0.04118626728321046,
    0.62993304899016403,
    0.06962479448202728,
)

TABLEAU = EsdirkTableau(
    order=5,
    error_order=4,
    gamma=_GAMMA,
    c=(0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0),
    a=(
        (),
        (_GAMMA,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        _A6,
        _A7,
    ),
    error=tuple(b - b_hat for b, b_hat in zip((*_A7, _GAMMA), (*_A6, _GAMMA, 0.0), strict=True)),
    # OrdinaryDiffEq's: extrapolated slopes; the last stage starts from the one before, the embedded solution.
    predictor=(
        (),
        (1.0,),
        (-1.366025403784441, 2.3660254037844357),
        (-0.19650552613122207, 0.8113579546496623, 0.38514757148155954),
        (0.10375304369958693, 0.937994698066431, -0.04174774176601781, 0.0),
        (-0.17281112873898072, 0.6235784481025847, 0.5492326806363959, 0.0, 0.0),
        (*_A6, _GAMMA),
    ),
)
