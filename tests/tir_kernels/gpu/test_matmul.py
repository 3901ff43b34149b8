"""Matrix products against NumPy's in float64, on tensor cores and in registers."""

from __future__ import annotations

import numpy as np
import pytest
from gpu.gpu_runner import GpuKernel
from kernel_runner import DTYPES, assert_near

from tir_kernels.gpu.matmul import matmul

# Inputs, outputs, dtype, dtype of the product. The depth of a tile is 32 on tensor cores, 8 in
# registers; rows of a multiple of 8 elements go to tensor cores.
SHAPES = {
    "whole tiles": (160, 256, "bfloat16", "bfloat16"),
    "part of a tile": (72, 300, "float16", "float16"),
    "less than the pipeline is deep": (24, 31, "bfloat16", "float32"),
    "float32": (44, 200, "float32", "float32"),
    "odd float32": (37, 53, "float32", "float32"),
    "odd bfloat16": (19, 130, "bfloat16", "bfloat16"),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_matmul(shape: tuple[int, int, str, str]) -> None:
    inputs, outputs, dtype, out_dtype = shape
    kernel = GpuKernel(matmul(*shape))
    rng = np.random.default_rng(inputs)
    w = rng.standard_normal((outputs, inputs)).astype(DTYPES[dtype])
    for m in (1, 17, 130):
        a = rng.standard_normal((m, inputs)).astype(DTYPES[dtype])
        y = kernel(a, w, np.full((m, outputs), np.nan, DTYPES[out_dtype]))
        wanted = a.astype(np.float64) @ w.astype(np.float64).T
        rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[out_dtype]
        assert_near(y, wanted, 1e-6 + rounding)
