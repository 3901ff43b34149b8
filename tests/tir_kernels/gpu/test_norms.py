"""Group norms and the gate of the FFN against the float64 PyTorch operations."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near, poisoned, silu
from test_norm_kernels import EPS, exact, normal

from gecko_mlc.reference import ops
from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import LEAST
from tir_kernels.gpu import gate, norms
from tir_kernels.gpu.unit import SM80, GpuUnit

# Half a unit in the last place of a value of magnitude one.
ROUNDING = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
# Rows that one access per thread covers, of several accesses, and of odd groups.
GROUPINGS = [
    (512, 4, "bfloat16", SM80),
    (4160, 1, "float16", SM80),
    (130, 13, "bfloat16", SM80),
    (60, 4, "float32", SM80),
    (4160, 1, "float16", LEAST),
]


def rounded(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    return normal(rng, *shape).astype(DTYPES[dtype])


def unwritten(dtype: str, *shape: int) -> np.ndarray:
    return poisoned(*shape).astype(DTYPES[dtype])


@pytest.mark.parametrize(("dim", "groups", "dtype", "unit"), GROUPINGS)
def test_rms_norm(dim: int, groups: int, dtype: str, unit: GpuUnit) -> None:
    rng = np.random.default_rng(dim)
    kernel = GpuKernel(norms.rms_norm(dim, groups, EPS, dtype, unit))
    weight = normal(rng, dim)
    for m in (1, 7):
        x = rounded(rng, dtype, m, dim)
        wanted = ops.group_rms_norm(exact(x.astype(np.float32)), exact(weight), groups, EPS)
        assert_near(
            kernel(x, weight, unwritten(dtype, m, dim)), wanted.numpy(), 2e-6 + ROUNDING[dtype]
        )


@pytest.mark.parametrize(("dim", "groups", "dtype", "unit"), GROUPINGS)
def test_layer_norm_of_the_sum(dim: int, groups: int, dtype: str, unit: GpuUnit) -> None:
    rng = np.random.default_rng(dim)
    columns = dim + 24
    kernel = GpuKernel(norms.layer_norm(dim, groups, EPS, columns, dtype, unit))
    weight, bias, bias_products = normal(rng, dim), normal(rng, dim), normal(rng, columns)
    for m in (1, 7):
        h2, products = rounded(rng, dtype, m, dim), rounded(rng, dtype, m, columns)
        x = normal(rng, m, dim)
        x[0] += 100.0  # a mean that must not cost digits of the variance
        out, n = kernel(
            h2, products, bias_products, x, weight, bias, poisoned(m, dim),
            unwritten(dtype, m, dim), writes=(-2, -1),
        )  # fmt: skip
        h1 = products.astype(np.float64)[:, -dim:] + bias_products[-dim:]
        assert_near(out, h2.astype(np.float64) + h1 + x, 3e-7)
        wanted = ops.group_layer_norm(exact(out), exact(weight), exact(bias), groups, EPS)
        assert_near(n, wanted.numpy(), 4e-5 + ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_a_constant_row(dtype: str) -> None:
    zeros = np.zeros((2, 12), DTYPES[dtype])
    ones, nothing = np.ones(12, np.float32), np.zeros(12, np.float32)
    rms = GpuKernel(norms.rms_norm(12, 2, EPS, dtype, SM80))
    assert (rms(zeros, ones, unwritten(dtype, 2, 12)) == 0).all()
    layer = GpuKernel(norms.layer_norm(12, 2, EPS, 12, dtype, SM80))
    x = np.full((2, 12), 5.0, np.float32)
    n = layer(
        zeros, zeros, nothing, x, ones, nothing, poisoned(2, 12), unwritten(dtype, 2, 12),
        writes=(-1, -2),
    )[0]  # fmt: skip
    assert (n == 0).all()


@pytest.mark.parametrize(
    ("hidden", "dtype"), [(2056, "bfloat16"), (44, "float16"), (21, "float32")]
)
def test_gate(hidden: int, dtype: str) -> None:
    rng = np.random.default_rng(hidden)
    x = (4.0 * normal(rng, 3, 2 * hidden)).astype(DTYPES[dtype])
    x[0, :4] = [-120.0, 120.0, 0.0, -90.0]
    gated = GpuKernel(gate.gate(hidden, True, dtype))
    activated = GpuKernel(gate.gate(2 * hidden, False, dtype))
    left, right = np.split(x.astype(np.float64), 2, axis=1)
    tolerance = 1e-6 + ROUNDING[dtype]
    assert_near(gated(x, unwritten(dtype, 3, hidden)), silu(left) * right, tolerance)
    assert_near(
        activated(x, unwritten(dtype, 3, 2 * hidden)), silu(np.hstack([left, right])), tolerance
    )
