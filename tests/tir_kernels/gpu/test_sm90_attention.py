"""The attention kernels for Hopper, by the test of the portable ones."""

from __future__ import annotations

import pytest

from gpu.gpu_runner import GpuKernel
from gpu.test_attention_prefill import LAYERS, Shape, test_attention
from tir_kernels.gpu.attention.prefill import memory_cast
from tir_kernels.gpu.sm90.attention import attention, attention_weights, supports

__all__ = ["test_attention"]

SHAPES = {
    "several tiles": Shape(2, 128, 320, 24, 256, "bfloat16"),
    "one tile": Shape(1, 64, 256, 8, 128, "float16"),
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    return request.param


@pytest.fixture(scope="module")
def kernels(shape: Shape) -> tuple[GpuKernel, GpuKernel, GpuKernel]:
    sizes = shape.heads, shape.z_head, shape.v_head
    assert supports(shape.z_head, shape.v_head, shape.chunk, shape.dtype)
    return (
        GpuKernel(memory_cast(*sizes, LAYERS, shape.dtype)),
        GpuKernel(attention_weights(*sizes, shape.chunk, LAYERS, shape.dtype), "sm_90a"),
        GpuKernel(attention(*sizes, shape.model_dim, shape.chunk, LAYERS, shape.dtype), "sm_90a"),
    )


def test_shapes_for_other_kernels() -> None:
    assert not supports(32, 256, 128, "bfloat16")
    assert not supports(64, 96, 128, "bfloat16")
    assert not supports(64, 128, 96, "bfloat16")
    assert not supports(64, 128, 128, "float32")
