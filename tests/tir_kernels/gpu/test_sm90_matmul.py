"""Matrix products by TMA and wgmma, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near, silu

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu.sm90.matmul import CLUSTER, Tiles, gated_matmul, matmul, supports

# By their own choice, these few rows take the narrowest tiles.
WIDE = (Tiles(256, 4, CLUSTER),) * 3
# Inputs, outputs, dtype, dtype of the product, tiles.
CASES = {
    "several tiles": (192, 776, "bfloat16", "bfloat16", WIDE),
    "several narrow tiles": (192, 200, "bfloat16", "bfloat16", None),
    "several tiles of 128": (128, 264, "float16", "float16", (Tiles(128, 6, 1),) * 3),
    "part of a tile of 208": (128, 328, "float16", "float16", (Tiles(208, 4, CLUSTER),) * 3),
    "one panel": (64, 256, "bfloat16", "float32", WIDE),
    "deeper than the ring": (640, 136, "float16", "float32", None),
}
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def operands(rng: np.random.Generator, m: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a [m, K], and its product with w [N, K] in float64."""
    a = rng.standard_normal((m, w.shape[1])).astype(w.dtype)
    return a, a.astype(np.float64) @ w.astype(np.float64).T


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_matmul(case: tuple) -> None:
    inputs, outputs, dtype, out_dtype, _ = case
    assert supports(inputs, outputs, dtype)
    kernel = GpuKernel(matmul(*case), "sm_90a")
    rng = np.random.default_rng(inputs)
    w = rng.standard_normal((outputs, inputs)).astype(DTYPES[dtype])
    for m in (1, 130, 260):
        a, wanted = operands(rng, m, w)
        y = kernel(a, w, np.full((m, outputs), np.nan, DTYPES[out_dtype]))
        assert_near(y, wanted, 1e-6 + ROUNDING[out_dtype])


@pytest.mark.parametrize("kinds", [None, WIDE], ids=["narrow", "wide"])
def test_gated_matmul(kinds: tuple[Tiles, Tiles, Tiles] | None) -> None:
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
