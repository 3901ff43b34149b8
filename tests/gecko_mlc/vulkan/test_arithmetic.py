"""Rounding to 16 bits, integers of both sizes, elementary functions, and guarded loads."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from small_kernels import compiled
from tvm.script import tirx as T

COUNT = 256


def hard_to_round() -> np.ndarray:
    """Float32 halfway between two bfloat16 or float16, beside that, too large, and no numbers."""
    ties = (np.arange(64, dtype=np.uint32) << 13 | 0x3F800000).view(np.float32)
    beside = np.concatenate([np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(-9))])
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 3.4e38, -3.4e38, 6.1e-5]
    values = np.concatenate([ties, beside, np.array(special, np.float32)]).astype(np.float32)
    return np.resize(values, COUNT)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_is_rounded_to_nearest_even(dtype, lanes):
    @T.prim_func(private=True)
    def convert(
        A: T.Buffer((COUNT,), "float32"),
        B: T.Buffer((COUNT,), dtype),
        C: T.Buffer((COUNT,), "float32"),
    ):
        T.device_entry()
        _group = T.cta_id([COUNT // 32 // lanes])
        tx = T.thread_id([32])
        for j in T.vectorized(lanes):
            B[(_group * 32 + tx) * lanes + j] = T.cast(A[(_group * 32 + tx) * lanes + j], dtype)
        for j in T.vectorized(lanes):
            C[(_group * 32 + tx) * lanes + j] = T.cast(B[(_group * 32 + tx) * lanes + j], "float32")

    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    a, b, c = hard_to_round(), np.zeros(COUNT, kind), np.zeros(COUNT, np.float32)
    compiled(convert)(COUNT // 32 // lanes, A=a, B=b, C=c)
    with np.errstate(over="ignore"):
        expected = a.astype(kind)
    isnan = np.isnan(a)
    np.testing.assert_array_equal(b.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(b) & ~isnan, np.signbit(expected) & ~isnan)
    np.testing.assert_array_equal(c, expected.astype(np.float32))


def test_bfloat16_arithmetic_rounds_each_result():
    @T.prim_func(private=True)
    def add(A: T.Buffer((64,), "bfloat16"), B: T.Buffer((64,), "bfloat16")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([64])
        B[tx] = A[tx] * A[63 - tx] + A[tx]

    a = np.random.default_rng(0).standard_normal(64).astype(ml_dtypes.bfloat16)
    b = np.zeros(64, ml_dtypes.bfloat16)
    compiled(add)(1, A=a, B=b)
    np.testing.assert_array_equal(b, a * a[::-1] + a)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32"])
def test_integers(dtype):
    kind = np.dtype(dtype)

    @T.prim_func(private=True)
    def operate(A: T.Buffer((64,), dtype), D: T.Buffer((64,), dtype), R: T.Buffer((12, 64), dtype)):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([64])
        R[0, tx] = A[tx] + D[tx]
        R[1, tx] = A[tx] - D[tx]
        R[2, tx] = A[tx] * D[tx]
        R[3, tx] = T.floordiv(A[tx], D[tx])
        R[4, tx] = T.floormod(A[tx], D[tx])
        R[5, tx] = T.truncdiv(A[tx], D[tx])
        R[6, tx] = T.min(A[tx], D[tx])
        R[7, tx] = T.max(A[tx], D[tx])
        R[8, tx] = A[tx] >> T.cast(3, dtype)
        R[9, tx] = T.bitwise_xor(A[tx] << T.cast(2, dtype), D[tx])
        R[10, tx] = T.Select(A[tx] < D[tx], T.cast(1, dtype), T.cast(0, dtype))
        R[11, tx] = T.bitwise_or(T.bitwise_and(A[tx], D[tx]), T.bitwise_not(D[tx]))

    random = np.random.default_rng(1)
    bits = random.integers(0, 1 << 30, 64) << (30 if kind.itemsize == 8 else 2)
    a = bits.astype(np.uint64).astype(kind)  # negative ones among those with a sign
    d = random.integers(1, 1000, 64).astype(kind)
    if dtype != "uint32":
        d[::2] = -d[::2]
    r = np.zeros((12, 64), kind)
    compiled(operate)(1, A=a, D=d, R=r)
    quotient = np.trunc(a.astype(np.longdouble) / d.astype(np.longdouble)).astype(kind)
    with np.errstate(over="ignore"):
        rows = [a + d, a - d, a * d, a // d, a % d, quotient, np.minimum(a, d), np.maximum(a, d)]
        rows += [a >> kind.type(3), a << kind.type(2) ^ d, (a < d).astype(kind), a & d | ~d]
    np.testing.assert_array_equal(r, np.array(rows))


# Vulkan allows 3 + 2 |x| units in the last place of exp; what kernels rely on is near that.
FUNCTIONS: dict[str, tuple[Callable, Callable, tuple[float, float], float]] = {
    "exp": (lambda x: T.exp(x), np.exp, (-20, 20), 6e-6),
    "exp2": (lambda x: T.exp2(x), np.exp2, (-20, 20), 6e-6),
    "log": (lambda x: T.log(x), np.log, (2, 1e6), 1e-6),
    "sqrt": (lambda x: T.sqrt(x), np.sqrt, (0, 1e6), 1e-6),
    "rsqrt": (lambda x: T.rsqrt(x), lambda x: 1 / np.sqrt(x), (1e-3, 1e6), 1e-6),
    "tanh": (lambda x: T.tanh(x), np.tanh, (-5, 5), 1e-5),
    "floor": (lambda x: T.floor(x), np.floor, (-9, 9), 0),
    "ceil": (lambda x: T.ceil(x), np.ceil, (-9, 9), 0),
    "abs": (lambda x: T.abs(x), np.abs, (-9, 9), 0),
    "expm1": (lambda x: T.call_pure_extern("float32", "expm1f", x), np.expm1, (-2, 2), 2e-6),
    "small expm1": (
        lambda x: T.call_pure_extern("float32", "expm1f", x),
        np.expm1,
        (-1e-4, 1e-4),
        2e-7,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_elementary_functions(name):
    function, reference, (low, high), tolerance = FUNCTIONS[name]

    @T.prim_func(private=True)
    def apply(A: T.Buffer((COUNT,), "float32"), B: T.Buffer((COUNT,), "float32")):
        T.device_entry()
        group = T.cta_id([COUNT // 32])
        tx = T.thread_id([32])
        B[group * 32 + tx] = function(A[group * 32 + tx])

    a = np.linspace(low, high, COUNT).astype(np.float32)
    b = np.zeros(COUNT, np.float32)
    compiled(apply)(COUNT // 32, A=a, B=b)
    np.testing.assert_allclose(b, reference(a.astype(np.float64)), rtol=tolerance, atol=1e-37)


def test_the_other_of_a_number_and_nan_is_least_and_greatest():
    @T.prim_func(private=True)
    def extremes(A: T.Buffer((32,), "float32"), B: T.Buffer((2, 32), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([32])
        B[0, tx] = T.min(A[tx], A[31 - tx])
        B[1, tx] = T.max(A[tx], A[31 - tx])

    a = np.arange(32, dtype=np.float32) - 7
    a[5] = np.nan
    b = np.zeros((2, 32), np.float32)
    compiled(extremes)(1, A=a, B=b)
    np.testing.assert_array_equal(b, [np.fmin(a, a[::-1]), np.fmax(a, a[::-1])])


def test_what_a_condition_excludes_is_not_loaded():
    """Far outside of memory, where lavapipe would fault."""
    far = 1 << 28

    @T.prim_func(private=True)
    def guarded(A: T.Buffer((32,), "float32"), B: T.Buffer((4, 32), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([32])
        B[0, tx] = T.if_then_else(tx < 9, A[tx], T.float32(-1))
        B[1, tx] = T.if_then_else(tx < 9, A[tx * 1], A[tx - 9])
        B[2, tx] = T.if_then_else(tx < 9, T.float32(-2), A[T.Select(tx < 9, far, 31 - tx)])
        B[3, tx] = T.float32(0)
        if tx < 9 and T.float32(3) < A[T.Select(tx < 9, tx, far)]:
            B[3, tx] = T.float32(1)
        if tx < 9 or A[T.Select(tx < 9, far, tx)] < T.float32(20):
            B[3, tx] = B[3, tx] + T.float32(2)

    a = np.arange(32, dtype=np.float32)
    b = np.zeros((4, 32), np.float32)
    compiled(guarded)(1, A=a, B=b)
    low = a < 9
    flags = np.where(low & (a > 3), 1, 0) + np.where(low | (a < 20), 2, 0)
    expected = [np.where(low, a, -1), np.where(low, a, a - 9), np.where(low, -2, 31 - a), flags]
    np.testing.assert_array_equal(b, expected)
