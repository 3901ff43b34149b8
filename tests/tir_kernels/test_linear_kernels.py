"""Linear layers with every ending, against float64 products with the weights as rounded."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, Kernel, assert_near, poisoned, silu

from tir_kernels import linear
from tir_kernels.vector_unit import AVX2, AVX512, NEON, PORTABLE, VectorUnit

UNITS = {"avx512": AVX512, "avx2": AVX2, "neon": NEON, "portable": PORTABLE}
# Every way to put a count together from full tiles, fours, twos and ones, for 4 to 8 rows a tile.
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 23)
# Sums of up to 67 products of unit normals, scaled to unit variance, in float32.
TOLERANCE = 3e-6


def panels(weight: np.ndarray, unit: VectorUnit) -> np.ndarray:
    """[N, K] to [N/panel, K, panel], zeros behind the last row."""
    outputs, inputs = weight.shape
    padded = np.zeros((-(-outputs // unit.panel) * unit.panel, inputs), weight.dtype)
    padded[:outputs] = weight
    return np.ascontiguousarray(padded.reshape(-1, unit.panel, inputs).transpose(0, 2, 1))


def gated_panels(weight: np.ndarray, unit: VectorUnit) -> np.ndarray:
    """[2F, K] to panels of ``lanes`` rows of the first half beside the same of the second."""
    halves = [panels(half, VectorUnit(unit.lanes // 2, unit.rows)) for half in np.split(weight, 2)]
    return np.concatenate(halves, axis=2)


class Case:
    """Rows and a rounded weight [N, K], and their product in float64."""

    def __init__(self, rng: np.random.Generator, m: int, weight: np.ndarray) -> None:
        self.a = rng.standard_normal((m, weight.shape[1]), dtype=np.float32)
        self.product = self.a.astype(np.float64) @ weight.astype(np.float64).T


def rounded_weight(rng: np.random.Generator, outputs: int, inputs: int, dtype: str) -> np.ndarray:
    return (rng.standard_normal((outputs, inputs)) / inputs**0.5).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_pack(unit: VectorUnit, dtype: str) -> None:
    rng = np.random.default_rng(0)
    plain, gated = (Kernel(linear.pack(dtype, unit, gated)) for gated in (False, True))
    for outputs, inputs in ((2 * unit.panel, 6), (unit.panel + 6, 5), (4, 1)):
        weight = rounded_weight(rng, outputs, inputs, dtype)
        wanted = panels(weight, unit)
        assert wanted.shape[0] == linear.num_panels(outputs, unit)
        found = plain(weight, np.full_like(wanted, np.nan))
        assert found.tobytes() == wanted.tobytes()

        wanted = gated_panels(weight, unit)
        assert wanted.shape[0] == linear.num_panels(outputs // 2, unit, gated=True)
        found = gated(weight, np.full_like(wanted, np.nan))
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("unit", "dtype", "inputs", "outputs"),
    [
        ("avx512", "float32", 64, 96),
        ("avx512", "bfloat16", 50, 70),
        ("avx2", "float16", 67, 33),
        ("neon", "bfloat16", 48, 31),
        ("portable", "float32", 3, 5),
    ],
)
def test_bias_and_gate(unit: str, dtype: str, inputs: int, outputs: int) -> None:
    rng = np.random.default_rng(inputs)
    first, last = outputs // 5, outputs - outputs // 3
    kernel = Kernel(linear.linear_bias_silu(inputs, outputs, (first, last), dtype, UNITS[unit]))
    weight = rounded_weight(rng, outputs, inputs, dtype)
    bias = rng.standard_normal(outputs, dtype=np.float32)
    for m in ROWS:
        case = Case(rng, m, weight)
        wanted = case.product + bias
        wanted[:, first:last] = silu(wanted[:, first:last])
        found = kernel(case.a, panels(weight, UNITS[unit]), bias, poisoned(m, outputs))
        assert_near(found, wanted, TOLERANCE)


@pytest.mark.parametrize("unit", ["avx512", "avx2"])
def test_gate_on_every_column(unit: str) -> None:
    rng = np.random.default_rng(1)
    kernel = Kernel(linear.linear_bias_silu(20, 26, (0, 26), "float32", UNITS[unit]))
    weight = rounded_weight(rng, 26, 20, "float32")
    bias = rng.standard_normal(26, dtype=np.float32)
    for m in ROWS:
        case = Case(rng, m, weight)
        found = kernel(case.a, panels(weight, UNITS[unit]), bias, poisoned(m, 26))
        assert_near(found, silu(case.product + bias), TOLERANCE)


@pytest.mark.parametrize(
    ("unit", "dtype", "outputs"),
    [("avx512", "float16", 257), ("portable", "bfloat16", 16)],
)
def test_logits(unit: str, dtype: str, outputs: int) -> None:
    rng = np.random.default_rng(2)
    kernel = Kernel(linear.linear(36, outputs, dtype, UNITS[unit]))
    weight = rounded_weight(rng, outputs, 36, dtype)
    for m in ROWS:
        case = Case(rng, m, weight)
        found = kernel(case.a, panels(weight, UNITS[unit]), poisoned(m, outputs))
        assert_near(found, case.product, TOLERANCE)


@pytest.mark.parametrize(("unit", "hidden"), [("avx512", 50), ("avx2", 24), ("neon", 9)])
def test_feed_forward_gates(unit: str, hidden: int) -> None:
    rng = np.random.default_rng(3)
    swiglu = Kernel(linear.linear_swiglu(40, hidden, "float32", UNITS[unit]))
    plain = Kernel(linear.linear_silu(40, hidden, "float32", UNITS[unit]))
    weight = rounded_weight(rng, 2 * hidden, 40, "float32")
    for m in ROWS:
        case = Case(rng, m, weight)
        gate, up = case.product[:, :hidden], case.product[:, hidden:]
        found = swiglu(case.a, gated_panels(weight, UNITS[unit]), poisoned(m, hidden))
        assert_near(found, silu(gate) * up, TOLERANCE)
        found = plain(case.a, panels(weight[:hidden], UNITS[unit]), poisoned(m, hidden))
        assert_near(found, silu(gate), TOLERANCE)


@pytest.mark.parametrize("unit", ["avx512", "portable"])
def test_residuals(unit: str) -> None:
    rng = np.random.default_rng(4)
    inputs, outputs, offset, width = 26, 36, 7, 50
    plain = Kernel(linear.linear_residual(inputs, outputs, "float32", UNITS[unit]))
    scaled = Kernel(linear.linear_scaled_residual(inputs, outputs, "float32", UNITS[unit]))
    block = Kernel(
        linear.linear_block_output(inputs, outputs, offset, width, "float32", UNITS[unit])
    )
    weight = rounded_weight(rng, outputs, inputs, "float32")
    packed = panels(weight, UNITS[unit])
    alpha = rng.standard_normal(outputs, dtype=np.float32)
    for m in ROWS:
        case = Case(rng, m, weight)
        residual = rng.standard_normal((m, outputs), dtype=np.float32)
        projected = rng.standard_normal((m, width), dtype=np.float32)
        out = poisoned(m, outputs)
        assert_near(plain(case.a, packed, residual, out), case.product + residual, TOLERANCE)
        found = scaled(case.a, packed, residual, alpha, out)
        assert_near(found, alpha * case.product + residual, TOLERANCE)
        found = block(case.a, packed, projected, residual, out)
        h1 = projected[:, offset : offset + outputs]
        assert_near(found, case.product + h1 + residual, TOLERANCE)
