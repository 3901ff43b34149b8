"""Matrix products by TMA and wgmma, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near, silu

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu.sm90.matmul import CLUSTER, Tiles, gated_matmul, matmul, supports

# Inputs, outputs, dtype, dtype of the product.
SHAPES = {
    "several tiles": (192, 768, "bfloat16", "bfloat16"),
    "part of a tile": (128, 328, "float16", "float16"),
    "one panel": (64, 256, "bfloat16", "float32"),
    "deeper than the ring": (640, 264, "float16", "float32"),
}
# These few rows would all take narrow tiles.
WIDE = Tiles(256, 4, CLUSTER)
KINDS = {"narrow": None, "wide": (WIDE, WIDE), "208 columns": (Tiles(208, 4, CLUSTER), WIDE)}
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def operands(rng: np.random.Generator, m: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a [m, K], and its product with w [N, K] in float64."""
    a = rng.standard_normal((m, w.shape[1])).astype(w.dtype)
    return a, a.astype(np.float64) @ w.astype(np.float64).T


@pytest.mark.parametrize("kinds", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_matmul(shape: tuple[int, int, str, str], kinds: tuple[Tiles, Tiles] | None) -> None:
    inputs, outputs, dtype, out_dtype = shape
    assert supports(inputs, outputs, dtype)
    kernel = GpuKernel(matmul(*shape, kinds), "sm_90a")
    rng = np.random.default_rng(inputs)
    w = rng.standard_normal((outputs, inputs)).astype(DTYPES[dtype])
    for m in (1, 130, 260):
        a, wanted = operands(rng, m, w)
        y = kernel(a, w, np.full((m, outputs), np.nan, DTYPES[out_dtype]))
        assert_near(y, wanted, 1e-6 + ROUNDING[out_dtype])


@pytest.mark.parametrize("kinds", [None, (WIDE, WIDE)], ids=["narrow", "wide"])
def test_gated_matmul(kinds: tuple[Tiles, Tiles] | None) -> None:
    inputs, hidden, dtype = 128, 200, "bfloat16"
    kernel = GpuKernel(gated_matmul(inputs, hidden, dtype, kinds), "sm_90a")
    rng = np.random.default_rng(hidden)
    w = rng.standard_normal((2 * hidden, inputs)).astype(DTYPES[dtype])
    for m in (5, 150):
        a, product = operands(rng, m, w)
        y = kernel(a, w, np.full((m, hidden), np.nan, DTYPES[dtype]))
        wanted = silu(product[:, :hidden]) * product[:, hidden:]
        assert_near(y, wanted, 2e-6 + ROUNDING[dtype])


def test_shapes_for_other_kernels() -> None:
    assert not supports(100, 256, "bfloat16")
    assert not supports(128, 130, "bfloat16")
    assert not supports(128, 256, "float32")
