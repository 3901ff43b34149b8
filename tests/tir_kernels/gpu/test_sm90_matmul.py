"""Matrix products by TMA and wgmma, against NumPy's in float64."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu.sm90.matmul import matmul, supports

# Inputs, outputs, dtype, dtype of the product.
SHAPES = {
    "several tiles": (192, 768, "bfloat16", "bfloat16"),
    "part of a tile": (128, 328, "float16", "float16"),
    "one panel": (64, 256, "bfloat16", "float32"),
    "deeper than the ring": (640, 264, "float16", "float32"),
}


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_matmul(shape: tuple[int, int, str, str], cluster: int) -> None:
    inputs, outputs, dtype, out_dtype = shape
    assert supports(inputs, outputs, dtype)
    kernel = GpuKernel(matmul(*shape, cluster=cluster), "sm_90a")
    rng = np.random.default_rng(inputs)
    w = rng.standard_normal((outputs, inputs)).astype(DTYPES[dtype])
    for m in (1, 130, 260):
        a = rng.standard_normal((m, inputs)).astype(DTYPES[dtype])
        y = kernel(a, w, np.full((m, outputs), np.nan, DTYPES[out_dtype]))
        wanted = a.astype(np.float64) @ w.astype(np.float64).T
        rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[out_dtype]
        assert_near(y, wanted, 1e-6 + rounding)


def test_shapes_for_other_kernels() -> None:
    assert not supports(100, 256, "bfloat16")
    assert not supports(128, 130, "bfloat16")
    assert not supports(128, 256, "float32")
