"""Tiles of cooperative matrices against NumPy in float64, on the emulated device."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near
from tvm.script import tirx as T

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu.cooperative import CooperativeTile, cooperative_tile
from tir_kernels.gpu.matmul import matmul
from tir_kernels.gpu.tensor_core import both
from tir_kernels.gpu.unit import GpuUnit

# rows, columns, warps down and across, right operand by depth, stages, depth of a step
TILES = {
    "one warp": (32, 64, 1, 1, False, 2, 32),
    "by depth": (32, 64, 2, 1, True, 2, 16),
    "one stage": (64, 64, 2, 2, False, 1, 64),
    "one stage by depth": (64, 128, 1, 2, True, 1, 32),
    "large": (128, 128, 2, 4, False, 2, 32),
}


@functools.cache
def _twice(tile: CooperativeTile, n: int, depth: int):
    """y = start + 2 a b for one tile: a [m, K], b [n, K] or [K, n], start and y [rows, columns]."""
    by_depth = tile.right_by_depth

    def left(operands, row, step, k):
        a, _, m = operands
        inside = both(row < m, step * tile.depth + k < depth)
        return a, [row, step * tile.depth + k], inside

    def right(operands, column, step, k):
        b = operands[1]
        at = step * tile.depth + k
        inside = both(column < n, at < depth)
        return b, [at, column] if by_depth else [column, at], inside

    product = tile.product(left, right)

    @T.prim_func(private=True)
    def twice(a: T.handle, b: T.handle, start: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, depth), tile.dtype)
        B = T.match_buffer(b, (depth, n) if by_depth else (n, depth), tile.dtype)
        Start = T.match_buffer(start, (tile.rows, tile.columns), "float32")
        Y = T.match_buffer(y, (tile.rows, tile.columns), "float32")
        T.device_entry()
        _number = T.cta_id([1])
        tx = T.thread_id([tile.threads])
        arena = T.meta_var(tile.arena())
        shared = T.meta_var(tile.shared(arena))
        sums = T.alloc_local((tile.accumulators,), "float32")
        for run in T.unroll(tile.accumulators // tile.width):
            for j in T.unroll(tile.width):
                sums[run * tile.width + j] = Start[tile.row(tx, run), tile.column(tx, run) + j]
        for _i in T.serial(2):
            product((A, B, m), shared, sums, -(-depth // tile.depth), tx)
        for run in T.unroll(tile.accumulators // tile.width):
            for j in T.unroll(tile.width):
                Y[tile.row(tx, run), tile.column(tx, run) + j] = sums[run * tile.width + j]

    return twice


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", TILES.values(), ids=list(TILES))
def test_product(shape: tuple[int, int, int, int, bool, int, int], dtype: str) -> None:
    tile = CooperativeTile(dtype, *shape)
    depth = 5 * tile.depth - 8
    m, n = tile.rows - 3, tile.columns - 8
    rng = np.random.default_rng(depth)
    a = rng.standard_normal((m, depth)).astype(DTYPES[dtype])
    b = rng.standard_normal((n, depth)).astype(DTYPES[dtype])
    start = rng.standard_normal((tile.rows, tile.columns)).astype(np.float32)
    right = np.ascontiguousarray(b.T) if tile.right_by_depth else b
    kernel = GpuKernel(_twice(tile, n, depth))
    y = kernel(a, right, start, np.full((tile.rows, tile.columns), np.nan, np.float32))
    wanted = start.astype(np.float64)
    wanted[:m, :n] += 2 * a.astype(np.float64) @ b.astype(np.float64).T
    assert_near(y, wanted, 1e-6)


@pytest.mark.parametrize("shape", TILES.values(), ids=list(TILES))
def test_places_of_sums(shape: tuple[int, int, int, int, bool, int, int]) -> None:
    """Each sum has one place, and threads that share a row are numbered."""
    tile = CooperativeTile("float16", *shape)
    places: set[tuple[int, int]] = set()
    sharers: dict[int, list[int]] = {}
    for tx in range(tile.threads):
        for run in range(tile.accumulators // tile.width):
            row, first = tile.row(tx, run), tile.column(tx, run)
            places |= {(row, first + j) for j in range(tile.width)}
            sharers.setdefault(row, []).append(tile.sharer(tx))
    assert places == {(i, j) for i in range(tile.rows) for j in range(tile.columns)}
    for row in range(tile.rows):
        assert sorted(sharers[row]) == list(range(tile.sharers))


@pytest.mark.parametrize("by_depth", [False, True])
@pytest.mark.parametrize("threads, shared", [(1024, 48 << 10), (128, 32 << 10)])
@pytest.mark.parametrize("rows, columns", [(128, 128), (64, 32), (32, 64)])
@pytest.mark.parametrize("warps", [4, 8])
def test_tile_of_unit(
    warps: int, rows: int, columns: int, threads: int, shared: int, by_depth: bool
) -> None:
    unit = GpuUnit("cooperative", threads, shared)
    tile = cooperative_tile(unit, "float16", rows, columns, by_depth, warps)
    assert tile.threads == 32 * min(warps, threads // 32)
    assert (tile.rows, tile.columns, tile.right_by_depth) == (rows, columns, by_depth)
    assert tile.threads <= threads and tile.shared_bytes <= shared


@pytest.mark.parametrize("threads, shared", [(256, 32 << 10), (128, 48 << 10)])
def test_matmul_of_unit(threads: int, shared: int) -> None:
    """Both tiles of a product within small limits: the small one may take more memory."""
    inputs, outputs, rows = 136, 200, (40, 70)
    kernel = GpuKernel(
        matmul(inputs, outputs, "float16", "float32", GpuUnit("cooperative", threads, shared))
    )
    rng = np.random.default_rng(threads)
    w = rng.standard_normal((outputs, inputs)).astype(np.float16)
    for m in rows:
        a = rng.standard_normal((m, inputs)).astype(np.float16)
        y = kernel(a, w, np.full((m, outputs), np.nan, np.float32))
        assert_near(y, a.astype(np.float64) @ w.astype(np.float64).T, 1e-6)


def test_no_room() -> None:
    with pytest.raises(ValueError, match="16384"):
        cooperative_tile(GpuUnit("cooperative", 256, 16 << 10), "float16", 128, 128, False, 8)
