"""Global memory beyond 4 GiB: a chain's offset may have 32 bits, so it must not lead there."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tvm
from small_kernels import lowered, validate, vulkan_target
from spirv_device import Memory, Shader
from tvm.script import tirx as T

from gecko_mlc.vulkan.kernel import Limits, compile_kernel

THREADS, ROWS = 32, 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_rows_far_apart(dtype: str, width: int) -> None:
    """Rows 4 GiB long, as the emulated device has its buffers: row i is buffer i."""
    row = (1 << 32) // np.dtype(dtype).itemsize

    @T.prim_func(private=True)
    def add_rows(a: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        rows = T.int64()
        A = T.match_buffer(a, (rows, row), dtype)
        Y = T.match_buffer(y, (rows, row), dtype)
        T.device_entry()
        _number = T.cta_id([1])
        tx = T.thread_id([THREADS])
        held = T.alloc_local((width,), dtype)
        for i in T.serial(ROWS):
            for j in T.vectorized(width):
                held[j] = A[T.Cast("int64", i), tx * width + j]
            for j in T.vectorized(width):
                Y[T.Cast("int64", i), tx * width + j] = held[j]

    module = tvm.IRModule({"add": add_rows.with_attr("global_symbol", "add")})
    target = vulkan_target()
    (kernel,) = (compile_kernel(each, Limits.of(target)) for each in lowered(module, target))
    validate(kernel)
    memory, size = Memory(), THREADS * width
    source = np.arange(ROWS * size).reshape(ROWS, size).astype(dtype)
    found = [bytearray(source[0].nbytes) for _ in range(ROWS)]
    places = [memory.add(bytearray(each.tobytes())) for each in source]
    places += [memory.add(each) for each in found]
    assert kernel.arguments == ("address", "address")
    shader = Shader(kernel.spirv)
    shader.run(memory, struct.pack("<QQ", places[0], places[ROWS]), workgroups=1)
    np.testing.assert_array_equal([np.frombuffer(each, dtype) for each in found], source)
