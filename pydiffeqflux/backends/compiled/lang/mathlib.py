"""Elementary functions without branches, so that loops over them run on whole vectors.

Reduction of the argument and polynomials: exp(x) = 2^n exp(r), r within log(2) / 2 of 0. Muller, "Elementary
functions" (3rd edition, 2016), section 11; the polynomials are Taylor's, long enough for the dtype. Errors are below
four units in the last place (tests/test_compiled_lang.py).
"""

from __future__ import annotations

import math

from .words import Real, bits, from_bits, is_single, real, select

_LOG2E = 1.4426950408889634
#: log(2) in two parts, the first short enough that its product with n is exact.
_HIGH, _LOW = 0.6931471803691238, 1.9082149292705877e-10
_HIGH_S, _LOW_S = 0.693359375, -2.12194440e-4
#: Adding it leaves the nearest integer in the lowest bits: 1.5 * 2^52, 1.5 * 2^23.
_ROUND, _ROUND_S = 6755399441055744.0, 12582912.0


def expm1_poly(r: Real) -> Real:
    """``exp(r) - 1`` for small r."""
    if is_single():
        q = real(1 / 5040)
        q = q * r + real(1 / 720)
        q = q * r + real(1 / 120)
        q = q * r + real(1 / 24)
        q = q * r + real(1 / 6)
        q = q * r + real(0.5)
        return r + r * r * q
    q = real(1 / 87178291200)
    q = q * r + real(1 / 6227020800)
    q = q * r + real(1 / 479001600)
    q = q * r + real(1 / 39916800)
    q = q * r + real(1 / 3628800)
    q = q * r + real(1 / 362880)
    q = q * r + real(1 / 40320)
    q = q * r + real(1 / 5040)
    q = q * r + real(1 / 720)
    q = q * r + real(1 / 120)
    q = q * r + real(1 / 24)
    q = q * r + real(1 / 6)
    q = q * r + real(0.5)
    return r + r * r * q


def power_of_two(shifted: Real) -> Real:
    """``2^n`` for ``shifted = n + ROUND``, n within the range of normal exponents."""
    if is_single():
        return from_bits((bits(shifted) << 23) + (127 << 23))
    return from_bits((bits(shifted) << 52) + (1023 << 52))


def exp(x: Real) -> Real:
    """The exponential: 0 and infinity where it leaves the dtype's range."""
    magic = real(_ROUND_S) if is_single() else real(_ROUND)
    high, low = (real(_HIGH_S) if is_single() else real(_HIGH)), (real(_LOW_S) if is_single() else real(_LOW))
    bottom, top = (real(-104.0) if is_single() else real(-746.0)), (real(89.0) if is_single() else real(710.0))
    z = min(max(x, bottom), top)
    shifted = z * real(_LOG2E) + magic
    n = shifted - magic
    r = (z - n * high) - n * low
    # 2^n in two factors: n alone may lie outside the normal exponents.
    half = n * real(0.5) + magic
    first = power_of_two(half)
    second = power_of_two((n - (half - magic)) + magic)
    return (real(1.0) + expm1_poly(r)) * first * second


def expm1_in_range(x: Real) -> Real:
    """``exp(x) - 1`` for an argument whose exponential is a normal number."""
    magic = real(_ROUND_S) if is_single() else real(_ROUND)
    high, low = (real(_HIGH_S) if is_single() else real(_HIGH)), (real(_LOW_S) if is_single() else real(_LOW))
    shifted = x * real(_LOG2E) + magic
    n = shifted - magic
    r = (x - n * high) - n * low
    scale = power_of_two(shifted)
    return scale * expm1_poly(r) + (scale - real(1.0))


def expm1(x: Real) -> Real:
    """``exp(x) - 1``, exact also near 0; -1 and infinity where it leaves the dtype's range."""
    bottom, top = (real(-18.0) if is_single() else real(-38.0)), (real(88.0) if is_single() else real(709.0))
    inside = expm1_in_range(min(max(x, bottom), top))
    return select(x > top, exp(x) - real(1.0), select(x < bottom, real(-1.0), inside))


#: The bits of 1, of sqrt(1/2) (its high ones), of the mantissa, and of the number whose lowest bit is worth 1.
_ONE, _HALF_ROOT, _MANTISSA, _UNIT = 0x3FF0000000000000, 0x3FE6A09E00000000, 0x000FFFFFFFFFFFFF, 0x4330000000000000
_ONE_S, _HALF_ROOT_S, _MANTISSA_S, _UNIT_S = 0x3F800000, 0x3F3504F3, 0x007FFFFF, 0x4B000000


def log_poly(z: Real) -> Real:
    """``(log(1 + s) - log(1 - s)) / s - 2`` for ``z = s^2``, s within 0.172 of 0."""
    if is_single():
        q = real(2 / 11)
        q = q * z + real(2 / 9)
        q = q * z + real(2 / 7)
        q = q * z + real(2 / 5)
        return z * (q * z + real(2 / 3))
    q = real(2 / 25)
    q = q * z + real(2 / 23)
    q = q * z + real(2 / 21)
    q = q * z + real(2 / 19)
    q = q * z + real(2 / 17)
    q = q * z + real(2 / 15)
    q = q * z + real(2 / 13)
    q = q * z + real(2 / 11)
    q = q * z + real(2 / 9)
    q = q * z + real(2 / 7)
    q = q * z + real(2 / 5)
    return z * (q * z + real(2 / 3))


def log1p(x: Real) -> Real:
    """``log(1 + x)``, exact also near 0: the exponent of 1 + x, and atanh's series of what is left."""
    u = real(1.0) + x
    lost = select(x < real(1.0), x - (u - real(1.0)), real(1.0) - (u - x)) / u
    if is_single():
        at = bits(u) + (_ONE_S - _HALF_ROOT_S)
        n = from_bits((at >> 23) + _UNIT_S) - real(8388608.0 + 127.0)
        f = from_bits((at & _MANTISSA_S) + _HALF_ROOT_S) - real(1.0)
    else:
        at = bits(u) + (_ONE - _HALF_ROOT)
        n = from_bits((at >> 52) + _UNIT) - real(4503599627370496.0 + 1023.0)
        f = from_bits((at & _MANTISSA) + _HALF_ROOT) - real(1.0)
    high, low = (real(_HIGH_S) if is_single() else real(_HIGH)), (real(_LOW_S) if is_single() else real(_LOW))
    s, half = f / (real(2.0) + f), real(0.5) * f * f
    found = n * high + (f - (half - (s * (half + log_poly(s * s)) + (n * low + lost))))
    found = select(u > real(0.0), found, select(u == real(0.0), real(-math.inf), real(math.nan)))
    return select(x - x == real(0.0), found, select(x > real(0.0), x, real(math.nan)))


#: 2 / log(2), and (2^r - 1) / r for r within a half of 0: of all such polynomials the one whose relative error there is
#: least at its largest (7e-11), found by linear programming.
_TWO_LOG2E = 2.8853900817779268
_P0, _P1, _P2 = 0.6931471805621537, 0.24022650656478559, 0.055504100656574115
_P3, _P4, _P5 = 0.009619337066134492, 0.0013371878831381523, 0.00014960498608976148


def expm1_of_twice(x: Real) -> Real:
    """``exp(2 x) - 1`` for x in [0, 10], in single precision, as good as ``tanh`` needs it.

    The argument is reduced in one step: a relative error of the argument is no larger a one of tanh.
    """
    shifted = x * real(_TWO_LOG2E) + real(_ROUND_S)
    r = x * real(_TWO_LOG2E) - (shifted - real(_ROUND_S))
    q = real(_P5)
    q = q * r + real(_P4)
    q = q * r + real(_P3)
    q = q * r + real(_P2)
    q = q * r + real(_P1)
    q = q * r + real(_P0)
    scale = power_of_two(shifted)
    return (scale * r) * q + (scale - real(1.0))


def tanh(x: Real) -> Real:
    """The hyperbolic tangent, by ``expm1(2 |x|)``; 1 from where the dtype cannot tell it from 1."""
    if is_single():
        e = expm1_of_twice(min(abs(x), real(10.0)))
    else:
        e = expm1_in_range(min(abs(x) * real(2.0), real(44.0)))
    return math.copysign(e / (e + real(2.0)), x)


def sigmoid(x: Real) -> Real:
    """``1 / (1 + exp(-x))``."""
    return real(1.0) / (real(1.0) + exp(-x))


def maximum(a: Real, b: Real) -> Real:
    """The larger; NaN where either is."""
    return select(a != a, a, select(a > b, a, b))


def minimum(a: Real, b: Real) -> Real:
    """The smaller; NaN where either is."""
    return select(a != a, a, select(a < b, a, b))


def sign(a: Real) -> Real:
    """-1, 0 or 1; NaN of NaN."""
    return select(a != a, a, real(a > real(0.0)) - real(a < real(0.0)))
