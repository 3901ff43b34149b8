"""Cooperative matrices in SPIR-V: valid, and run by a device in Python against NumPy in float64."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tvm
from small_kernels import lowered, validate
from spirv_device import Memory, Shader
from tvm.script import tirx as T

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.gpu_targets import VulkanTarget
from gecko_mlc.vulkan.cooperative import device_multiplies
from gecko_mlc.vulkan.kernel import Kernel, Limits, compile_kernel
from tir_kernels.gpu import skinny
from tir_kernels.gpu.attention.prefill import attention, attention_weights
from tir_kernels.gpu.cooperative import CooperativeTile, store_sums
from tir_kernels.gpu.matmul import matmul
from tir_kernels.gpu.memory import memory_overlap, memory_update

TARGET = VulkanTarget("test", 1024, 49152, 256, subgroup=32, cooperative_matrix=True)
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_CAPABILITY, _COOPERATIVE_MATRIX, _BFLOAT16_MATRIX = 17, 6022, 5118


def _compiled(function, target: VulkanTarget = TARGET) -> list[Kernel]:
    """The kernels of a device function."""
    module = tvm.IRModule({"product": function.with_attr("global_symbol", "product")})
    limits = Limits.of(target.tvm_target)
    return [compile_kernel(kernel, limits) for kernel in lowered(module, target.tvm_target)]


def _product(tile: CooperativeTile, depth: int, columns: int):
    """y [m, n] = a [m, K] @ b, b being [n, K] or, by depth, [K, n]; one tile of it."""
    by_depth = tile.right_by_depth

    def left(operands, row, step, k):
        a, _, m = operands
        return a, [row, step * tile.depth + k], row < m

    def right(operands, column, step, k):
        b, at = operands[1], step * tile.depth + k
        return b, [at, column] if by_depth else [column, at], None

    product = tile.product(left, right)

    @T.prim_func(private=True)
    def function(a: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, depth), tile.dtype)
        B = T.match_buffer(b, (depth, columns) if by_depth else (columns, depth), tile.dtype)
        Y = T.match_buffer(y, (m, columns), "float32")
        T.device_entry()
        _number = T.cta_id([1])
        tx = T.thread_id([tile.threads])
        arena = T.meta_var(tile.arena())
        shared = T.meta_var(tile.shared(arena))
        sums = T.alloc_local((tile.accumulators,), "float32")
        for i in T.unroll(tile.accumulators):
            sums[i] = T.float32(0)
        product((A, B, m), shared, sums, depth // tile.depth, tx)
        for run in T.unroll(tile.accumulators // tile.width):
            if tile.row(tx, run) < m:
                for j in T.unroll(tile.width):
                    Y[tile.row(tx, run), tile.column(tx, run) + j] = sums[run * tile.width + j]

    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "warp_columns, by_depth, stages", [(1, False, 2), (1, True, 1), (2, False, 1), (2, True, 2)]
)
def test_product(warp_columns: int, by_depth: bool, stages: int, dtype: str) -> None:
    tile = CooperativeTile(dtype, 32, 64, 1, warp_columns, by_depth, stages, 16)
    rows, depth = 21, 48
    (kernel,) = _compiled(_product(tile, depth, tile.columns))
    assert kernel.subgroup == 32 and kernel.cooperative_matrix
    assert kernel.bfloat16 == (dtype == "bfloat16")
    assert kernel.shared == tile.shared_bytes and kernel.threads == (32 * warp_columns, 1, 1)
    validate(kernel)
    shader, memory = Shader(kernel.spirv), Memory()
    capabilities = {words[0] for opcode, words in shader.lines if opcode == _CAPABILITY}
    assert _COOPERATIVE_MATRIX in capabilities
    assert (_BFLOAT16_MATRIX in capabilities) == (dtype == "bfloat16")

    rng = np.random.default_rng(1)
    a = rng.standard_normal((rows, depth)).astype(DTYPES[dtype])
    b = rng.standard_normal((tile.columns, depth)).astype(DTYPES[dtype])
    right = np.ascontiguousarray(b.T) if by_depth else b
    y = bytearray(4 * rows * tile.columns)
    addresses = [memory.add(bytearray(array.tobytes())) for array in (a, right)]
    assert kernel.arguments == ("address", "address", "address", "int32")
    shader.run(memory, struct.pack("<QQQi", *addresses, memory.add(y), rows), workgroups=1)
    wanted = a.astype(np.float64) @ b.astype(np.float64).T
    found = np.frombuffer(y, np.float32).reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


# heads, zh, vh, chunk: whole tiles of everything, and parts of them.
_SHAPES = ((2, 64, 128, 256), (1, 32, 136, 256))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "make, arguments",
    [
        (matmul, (320, 256, "float16")),
        (matmul, (72, 300, "float32")),
        *((make, shape) for make in (attention_weights, memory_update) for shape in _SHAPES),
        *((attention, (*sizes, 128, chunk)) for *sizes, chunk in _SHAPES),
        (memory_overlap, (2, 64, 256)),
    ],
)
def test_kernels_of_prefill(make, arguments: tuple, dtype: str) -> None:
    """They multiply with cooperative matrices, in modules that spirv-val takes."""
    if make is matmul:
        inputs, outputs, out_dtype = arguments
        function = matmul(inputs, outputs, dtype, out_dtype, TARGET.unit)
    elif make is memory_overlap:
        function = memory_overlap(*arguments, dtype, TARGET.unit)
    else:
        function = make(*arguments, 2, dtype, TARGET.unit)
    kernels = _compiled(function)
    assert all(kernel.cooperative_matrix for kernel in kernels)
    validate(*kernels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, dim, outputs", [(8, 128, 40), (19, 64, 48)])
def test_product_of_a_step(batch: int, dim: int, outputs: int, dtype: str) -> None:
    """Inputs shared by warps, a last tile that is not whole, rows that are none."""
    (kernel,) = _compiled(skinny.logits_step(batch, dim, outputs, dtype, TARGET.unit))
    shader, memory = Shader(kernel.spirv), Memory()
    rng = np.random.default_rng(batch)
    o = rng.standard_normal((batch, dim)).astype(DTYPES[dtype])
    w = rng.standard_normal((outputs, dim)).astype(DTYPES[dtype])
    y = bytearray(b"\xff" * (4 * batch * outputs))
    addresses = [memory.add(bytearray(array.tobytes())) for array in (o, w)]
    assert kernel.arguments == ("address", "address", "address")
    arguments = struct.pack("<QQQ", *addresses, memory.add(y))
    shader.run(memory, arguments, workgroups=-(-outputs // 16))
    wanted = o.astype(np.float64) @ w.astype(np.float64).T
    found = np.frombuffer(y, np.float32).reshape(wanted.shape)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [8, 32])
def test_kernels_of_a_step(batch: int, dtype: str) -> None:
    """So do the products of eight sequences and more."""
    unit = TARGET.unit
    norm = skinny.Norm(256, 1, 1e-5, centred=True)
    for function in (
        skinny.projections_step(batch, norm, 512, 16, dtype, unit),
        skinny.fc1_step(batch, norm, 200, True, dtype, unit),
        skinny.logits_step(batch, 256, 100, dtype, unit),
    ):
        (kernel,) = _compiled(function)
        assert kernel.cooperative_matrix and kernel.subgroup == 32
        validate(kernel)


def test_needs_the_feature() -> None:
    tile = CooperativeTile("float16", 32, 64, 1, 1, False, 1, 16)
    target = VulkanTarget("test", 1024, 49152, 256, subgroup=32)
    with pytest.raises(CompileError, match="kernel product_kernel needs cooperative_matrix"):
        _compiled(_product(tile, 32, 64), target)


def test_products_of_a_device() -> None:
    ours: dict[str, Any] = {
        "m": 16, "n": 16, "k": 16, "a": "float16", "b": "float16", "c": "float32",
        "result": "float32", "scope": "subgroup", "saturating": False,
    }  # fmt: skip
    narrow, half = {**ours, "m": 8}, {**ours, "c": "float16", "result": "float16"}
    assert device_multiplies([half, narrow, ours])
    assert not device_multiplies([half, narrow])


def test_rows_must_be_aligned() -> None:
    """Rows of a matrix that do not begin at multiples of 16 bytes are refused."""

    @T.prim_func(private=True)
    def function(y: T.handle):
        T.func_attr({"tirx.noalias": True})
        Y = T.match_buffer(y, (16, 16), "float32")
        T.device_entry()
        _number = T.cta_id([1])
        tx = T.thread_id([32])
        shared = T.alloc_buffer((16 * 18,), "uint32", scope="shared")
        sums = T.alloc_local((8,), "float32")
        for j in T.vectorized(4):
            shared[tx * 4 + j] = T.uint32(0)
        T.evaluate(store_sums(shared.ptr_to([0]), sums, 0, 18))
        T.tvm_storage_sync("shared")
        Y[tx % 16, 0] = T.reinterpret("float32", shared[tx])

    with pytest.raises(CompileError, match="rows are 18 words apart"):
        _compiled(function)
