"""The compiled language: what its words mean, against Python and NumPy."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from pydiffeqflux.backends.compiled import toolchain
from pydiffeqflux.backends.compiled.lang import compiler, machine
from pydiffeqflux.backends.compiled.lang.words import Ints, Reals, Wide, bits, real, wide_from_bits

FUNCTIONS = {"exp": np.exp, "expm1": np.expm1, "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x))}


def elementwise(name: str, x: np.ndarray) -> np.ndarray:
    """A function of ``mathlib`` over an array, in the array's dtype."""
    source = "def f(n: Ints, y: Reals, out: Reals) -> None:\n    for k in range(n[0]):\n"
    source += f"        out[k] = {name}(y[k])\n"
    code = toolchain.kernels([source], x.dtype == np.float32)
    out, n = np.empty_like(x), np.array([len(x)])
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3)(code.address("f"))(n.ctypes.data, x.ctypes.data, out.ctypes.data)
    return out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_a_few_units_in_the_last_place(name: str, dtype: type) -> None:
    edge = 85.0 if dtype == np.float32 else 700.0
    small = np.geomspace(1e-9, 1.0, 2001)
    x = np.concatenate([np.linspace(-edge, edge, 20_001), np.linspace(-3, 3, 20_001), small, -small]).astype(dtype)
    exact = FUNCTIONS[name](x.astype(np.longdouble))
    got = elementwise(name, x)
    unit = np.spacing(np.maximum(np.abs(exact.astype(dtype)), np.finfo(dtype).tiny))
    assert float(np.max(np.abs(got.astype(np.longdouble) - exact) / unit)) < 4.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outside_the_range(dtype: type) -> None:
    x = np.array([-np.inf, -1e4, 1e4, np.inf, np.nan, 0.0, -0.0], dtype=dtype)
    np.testing.assert_array_equal(elementwise("exp", x), np.array([0, 0, np.inf, np.inf, np.nan, 1, 1], dtype=dtype))
    np.testing.assert_array_equal(elementwise("tanh", x), np.array([-1, -1, 1, 1, np.nan, 0, 0], dtype=dtype))
    np.testing.assert_array_equal(elementwise("sigmoid", x), np.array([0, 0, 1, 1, np.nan, 0.5, 0.5], dtype=dtype))
    want = np.array([-1, -1, np.inf, np.inf, np.nan, 0, 0], dtype=dtype)
    np.testing.assert_array_equal(elementwise("expm1", x), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_logarithm_of_one_and_more(dtype: type) -> None:
    sizes = 10 ** np.linspace(-30, 30, 4000)
    x = np.concatenate([sizes, -sizes[sizes < 1], np.linspace(-0.99, 3, 4001)]).astype(dtype)
    with np.errstate(divide="ignore"):
        exact = np.log1p(x.astype(np.longdouble))
    got, finite = elementwise("log1p", x), np.isfinite(exact)
    np.testing.assert_array_equal(np.isinf(got), ~finite)  # -1, to which the largest negative ones are rounded
    unit = np.spacing(np.maximum(np.abs(exact[finite].astype(dtype)), np.finfo(dtype).tiny))
    assert float(np.max(np.abs(got[finite].astype(np.longdouble) - exact[finite]) / unit)) < 1.0
    x = np.array([0.0, -1.0, -2.0, np.inf, -np.inf, np.nan], dtype=dtype)
    np.testing.assert_array_equal(elementwise("log1p", x), [0.0, -np.inf, np.nan, np.inf, np.nan, np.nan])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_smallest_exponentials(dtype: type) -> None:
    x = np.linspace(-103, -80, 400).astype(dtype) if dtype == np.float32 else np.linspace(-745, -700, 400)
    np.testing.assert_allclose(elementwise("exp", x), np.exp(x), rtol=1e-5, atol=4 * np.finfo(dtype).smallest_subnormal)


def _statements(n: int, x: Wide, k: Ints, out: Reals) -> int:
    total = 0
    for i in range(n):
        if i % 2 == 0 and k[i] > 0:
            continue
        elif i == 7:
            break
        total += k[i] // 3
    while total > 100:
        total -= 13
    first, second = x[0], x[1]
    first, second = second, first
    out[0] = first if first > second else second * 2.0
    out[1:][0] = real(abs(x[2]) ** 3) + math.sqrt(x[1])
    x[3] = wide_from_bits(bits(x[0]))
    for i in range(3, 0, -1):
        x[3 + i] = float(i)
    return total if n > 2 or n == -1 else -total


def test_statements_mean_what_they_mean_in_python() -> None:
    unit = compiler.Unit(single=False)
    unit.function(_statements, export=True)
    code = machine.Loaded(machine.object_code(unit.module))
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3)(code.address("_statements"))
    for n in (0, 2, 9):
        k = np.array([5, -7, 40, 1000, -3, 8, 9, 10, 11], dtype=np.int64)
        x, out = np.array([1.5, 2.25, -1.25, 0, 0, 0, 0]), np.zeros(2)
        got = call(n, x.ctypes.data, k.ctypes.data, out.ctypes.data)
        total = 0
        for i in range(n):
            if i % 2 == 0 and k[i] > 0:
                continue
            if i == 7:
                break
            total += int(k[i]) // 3
        while total > 100:
            total -= 13
        assert got == (total if n > 2 else -total)
        assert out.tolist() == [2.25, 1.25**3 + 1.5]
        assert x[3:].tolist() == [1.5, 1.0, 2.0, 3.0]


def test_what_is_not_in_the_language_is_refused() -> None:
    with pytest.raises(TypeError, match="calls what the language does not know"):
        toolchain.kernels(["def f(y: Reals) -> None:\n    y[0] = sum(y[1])\n"], False)


def _uses_all(y: Reals) -> None:
    y[0] = 0.0


def test_dtypes_are_compiled_separately() -> None:
    texts = []
    for single in (True, False):
        unit = compiler.Unit(single=single)
        unit.function(_uses_all, export=True)
        texts.append(str(unit.module))
    assert "float" in texts[0] and "double" not in texts[0].split("define")[1] and "double" in texts[1]
