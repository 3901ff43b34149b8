"""The attention kernels for Hopper: by the test of the portable ones, and with far-off scores."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near, softmax

from gpu.gpu_runner import GpuKernel
from gpu.test_attention_prefill import LAYER, LAYERS, SLOT, SLOTS, Kernels, Shape, test_attention
from tir_kernels.gpu.attention.prefill import memory_cast
from tir_kernels.gpu.sm90.attention import attention, attention_weights, supports
from tir_kernels.gpu.unit import SM90A

__all__ = ["test_attention"]

SHAPES = {
    "several tiles": Shape(2, 128, 320, 24, 256, "bfloat16"),
    "one tile": Shape(1, 64, 256, 8, 128, "float16"),
}


def normalised(weights: np.ndarray) -> np.ndarray:
    """Powers [H, m, 2C] divided by their sum; NaN stays where nothing was written."""
    powers = weights.astype(np.float64)
    return (powers / np.nansum(powers, axis=2, keepdims=True)).astype(weights.dtype)


class HopperKernels(Kernels):
    """Prefill's attention for one shape by Hopper's own instructions."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        sizes = shape.heads, shape.z_head, shape.v_head
        assert supports(shape.z_head, shape.v_head, shape.chunk, shape.dtype)
        powers = GpuKernel(attention_weights(*sizes, shape.chunk, LAYERS, shape.dtype), "sm_90a")
        self.memory_cast = GpuKernel(memory_cast(*sizes, LAYERS, shape.dtype, SM90A))
        self.weights = lambda *arguments: normalised(powers(*arguments))
        self.attention = GpuKernel(
            attention(*sizes, shape.model_dim, shape.chunk, LAYERS, shape.dtype), "sm_90a"
        )


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def kernels(request: pytest.FixtureRequest) -> HopperKernels:
    return HopperKernels(request.param)


def test_far_off_scores() -> None:
    """A row whose own key scores far below others: its powers would overflow at first."""
    heads, z_head, chunk, m, dtype = 2, 64, 256, 200, DTYPES["float16"]
    z_dim = heads * z_head
    kernel = GpuKernel(attention_weights(heads, z_head, 64, chunk, LAYERS, "float16"), "sm_90a")
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((3, m, z_dim)).astype(dtype)
    queries[:, 150:] *= 4
    keys = np.full((LAYERS, SLOTS, 2 * chunk, z_dim), np.nan, dtype)
    keys[LAYER, SLOT, chunk:] = rng.standard_normal((chunk, z_dim))
    keys[LAYER, SLOT, :m] = rng.standard_normal((m, z_dim))
    slots, position = np.array([SLOT], np.int32), np.array([0, 0, 2 * chunk], np.int32)
    found = kernel(
        queries, slots, position, keys, LAYER, np.full((heads, m, 2 * chunk), np.nan, dtype)
    )

    def scores(which: int, rows: slice) -> np.ndarray:
        q = queries[which].astype(np.float64).reshape(m, heads, z_head)
        k = keys[LAYER, SLOT, rows].astype(np.float64).reshape(-1, heads, z_head)
        return np.einsum("mhz,khz->hmk", q, k)

    own = scores(0, slice(0, m))
    before = scores(1, slice(chunk, None))
    index = np.arange(m)
    own = np.where(index[None, :] > index[:, None], -np.inf, own)
    far = max(own.max(), before.max()) - np.einsum("hmm->hm", own).min()
    assert far * np.log2(np.e) > 16  # beyond float16
    wanted = softmax(np.concatenate([own, before], axis=2))
    # Tiles of keys after the last query of a tile are not written.
    seen = index[None, :] // 128 <= index[:, None] // 128
    powers = np.concatenate([np.where(seen, found[:, :, :m], 0.0), found[:, :, chunk:]], axis=2)
    assert_near(normalised(powers), wanted, 2.0**-10)


def test_shapes_for_other_kernels() -> None:
    assert not supports(32, 256, 128, "bfloat16")
    assert not supports(64, 96, 128, "bfloat16")
    assert not supports(64, 128, 96, "bfloat16")
    assert not supports(64, 128, 128, "float32")
