"""The embedding and the last row of a prefill: exactly the table's rows."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, poisoned

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu import embedding


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "scale"), [(1028, 6.0), (31, 1.0)])
def test_embedding(dtype: str, dim: int, scale: float) -> None:
    table = np.random.default_rng(0).standard_normal((19, dim)).astype(DTYPES[dtype])
    kernel = GpuKernel(embedding.embed(19, dim, scale, dtype))
    for tokens in ([18], [0, 18, 7, 7, 3]):
        found = kernel(np.array(tokens, np.int32), table, poisoned(len(tokens), dim))
        assert (found == table[tokens].astype(np.float32) * np.float32(scale)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_last_row(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 133)).astype(DTYPES[dtype])
    kernel = GpuKernel(embedding.last_row(133, dtype))
    for m in (1, 5):
        assert (kernel(x[:m].copy(), poisoned(1, 133).astype(x.dtype)) == x[m - 1]).all()
