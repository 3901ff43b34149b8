"""Attention's inputs in prefill, against the float64 operations."""

from __future__ import annotations

import numpy as np
import pytest
from attention_reference import (
    EPS,
    LAYERS,
    Rings,
    Shape,
    assert_stored,
    inputs_reference,
)
from kernel_runner import DTYPES, silu

from gpu.gpu_runner import GpuKernel
from gpu.gpu_shapes import SHAPES
from gpu.gpu_units import with_units
from tir_kernels.gpu.attention_inputs import attention_inputs
from tir_kernels.gpu.unit import GpuUnit


@pytest.mark.parametrize("case", with_units(SHAPES, tuple(SHAPES)))
def test_attention_inputs(case: tuple[Shape, GpuUnit]) -> None:
    shape, unit = case
    dtype = DTYPES[shape.dtype]
    kernel = GpuKernel(
        attention_inputs(
            shape.heads, shape.z_head, shape.v_head, shape.rope_heads, shape.model_dim,
            shape.chunk, EPS, LAYERS, shape.dtype, unit,
        )
    )  # fmt: skip
    rng = np.random.default_rng(shape.heads)
    chunk = shape.chunk
    gamma, beta = rng.standard_normal((2, 4, shape.z_dim), dtype=np.float32)
    bias_v = rng.standard_normal(shape.value_dim, dtype=np.float32)
    bias = rng.standard_normal(shape.columns, dtype=np.float32)
    position = np.array([0, 3 * chunk + 5, 2 * chunk, 5 * chunk - 1], np.int32)
    for slot, m in ((0, chunk), (1, chunk - 5), (2, 3), (3, 1)):
        times = position[slot] + np.arange(m)
        projected = rng.standard_normal((m, shape.columns)).astype(dtype)
        v = rng.standard_normal((m, shape.value_dim)).astype(dtype)
        rings = Rings(rng, shape)
        *found, queries = kernel(
            projected, v, bias_v, bias, gamma, beta, shape.rope, np.array([slot], np.int32),
            position, *rings.all(), 1, np.full((3, m, shape.z_dim), np.nan, dtype),
            writes=(9, 10, 11, -1),
        )  # fmt: skip

        z = projected[:, : shape.z_dim].astype(np.float64) + bias[: shape.z_dim]
        wanted = inputs_reference(z, gamma, beta, times, shape)
        queries_wanted = np.stack([wanted.own, wanted.before, wanted.features])
        assert_stored(queries, queries_wanted, shape.dtype, 2e-6)
        values = silu(v.astype(np.float64) + bias_v)
        written = wanted.key, values, wanted.memory_key
        for ring, initial, stored in zip(found, rings.all(), written, strict=True):
            rows = 1, slot, times % (2 * chunk)
            assert_stored(ring[rows], stored, shape.dtype, 2e-6)
            ring[rows] = initial[rows]
            assert ring.tobytes() == initial.tobytes(), "a row that is not this step's was changed"
