"""Matrix products against NumPy's in float64, on tensor cores and in registers."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near

from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import with_units
from tir_kernels.gpu.matmul import matmul

# Inputs, outputs, dtype, dtype of the product, rows. A tile is 64 deep on tensor cores, 16 in
# registers; rows of a multiple of 8 elements go to tensor cores, where up to 64 rows have a tile of
# their own size.
SHAPES = {
    "whole tiles": (320, 128, "bfloat16", "bfloat16", (1, 64, 128)),
    "parts of tiles": (72, 300, "float16", "float16", (17, 130)),
    "odd outputs": (24, 31, "bfloat16", "float32", (64, 66)),
    "float32": (44, 200, "float32", "float32", (1, 130)),
    "wide float32": (72, 140, "float32", "float32", (130,)),
    "odd float32": (37, 53, "float32", "float32", (17,)),
    "odd bfloat16": (19, 130, "bfloat16", "bfloat16", (130,)),
}


@pytest.mark.parametrize(
    "case", with_units(SHAPES, ("float32", "wide float32", "odd float32", "odd bfloat16"))
)
def test_matmul(case) -> None:
    (inputs, outputs, dtype, out_dtype, rows), unit = case
    kernel = GpuKernel(matmul(inputs, outputs, dtype, out_dtype, unit))
    rng = np.random.default_rng(inputs)
    w = rng.standard_normal((outputs, inputs)).astype(DTYPES[dtype])
    for m in rows:
        a = rng.standard_normal((m, inputs)).astype(DTYPES[dtype])
        y = kernel(a, w, np.full((m, outputs), np.nan, DTYPES[out_dtype]))
        wanted = a.astype(np.float64) @ w.astype(np.float64).T
        rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[out_dtype]
        assert_near(y, wanted, 1e-6 + rounding)
