"""Matrix products of prefill, y = a @ w^T: a [m, K], m dynamic; w [N, K] as in the checkpoint."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .tensor_core import CHUNK, TensorTile
from .tiles import Tile, product_tile
from .unit import GpuUnit
from .vectors import vector_width


def _tile_kernel(tile: Tile, inputs: int, outputs: int, out_dtype: str):
    """An inline (A, W, Y, arena, m, number, tx): tile ``number`` of y, those of a column together.

    What is read of w then serves all rows from the cache.
    """
    vector = vector_width(out_dtype, tile.width, outputs)

    def within(depth):
        return depth < inputs if inputs % tile.depth else None

    def left(operands, row, step, k):
        a, _, m, row0, _ = operands
        depth = step * tile.depth + k
        # What rows past the last one give is not stored; asking first would cost more.
        return a, [T.min(row0 + row, m - 1), depth], within(depth)

    def right(operands, column, step, k):
        _, w, _, _, column0 = operands
        depth = step * tile.depth + k
        column = column0 + column
        if outputs % tile.columns:
            column = T.min(column, outputs - 1)
        return w, [column, depth], within(depth)

    product = tile.product(left, right)

    @T.inline
    def store(Y, row, column, sums, first):
        rounded = T.alloc_local((vector,), out_dtype)
        for j in T.unroll(vector):
            rounded[j] = T.Cast(out_dtype, sums[first + j])
        for j in T.vectorized(vector):
            Y[row, column + j] = rounded[j]

    @T.inline
    def compute(A, W, Y, arena, m, number, tx):
        row0: T.int32 = number % T.ceildiv(m, tile.rows) * tile.rows
        column0: T.int32 = number // T.ceildiv(m, tile.rows) * tile.columns
        sums = T.alloc_local((tile.accumulators,), "float32")
        shared = tile.shared(arena)
        for i in T.unroll(tile.accumulators):
            sums[i] = T.float32(0)
        product((A, W, m, row0, column0), shared, sums, -(-inputs // tile.depth), tx)
        for run in T.unroll(tile.accumulators // tile.width):
            row: T.let = row0 + tile.row(tx, run)
            column: T.let = column0 + tile.column(tx, run)
            if row < m:
                for j in T.unroll(tile.width // vector):
                    if column + j * vector < outputs:
                        store(Y, row, column + j * vector, sums, run * tile.width + j * vector)

    return compute


@functools.cache
def matmul(inputs: int, outputs: int, dtype: str, out_dtype: str, unit: GpuUnit):
    """y [m, N] of ``out_dtype``, each element rounded once from a float32 sum.

    On tensor cores two CTAs share a multiprocessor; up to 64 rows have tiles so narrow that w is
    read at memory speed.
    """
    large, small = (
        product_tile(unit, dtype, tile, inputs % CHUNK == 0, alone=True)
        for tile in (
            TensorTile(dtype, 128, 128, warp_rows=2, warp_columns=2, stages=3, depth=64),
            TensorTile(dtype, 64, 32, warp_rows=4, warp_columns=1, stages=8, depth=64),
        )
    )
    return _matmul(inputs, outputs, dtype, out_dtype, large, small)


def _matmul(inputs: int, outputs: int, dtype: str, out_dtype: str, large, small):
    """``large`` tiles for many rows, ``small`` ones for as many as they have."""
    by_large, by_small = (_tile_kernel(tile, inputs, outputs, out_dtype) for tile in (large, small))

    def tiles(tile, m):
        return T.ceildiv(m, tile.rows) * -(-outputs // tile.columns)

    @T.inline
    def either(A, W, Y, arena, m, number, tx):
        if m <= small.rows:
            by_small(A, W, Y, arena, m, number, tx)
        else:
            by_large(A, W, Y, arena, m, number, tx)

    compute = by_large if small == large else either
    roomier = max(large, small, key=lambda tile: tile.shared_bytes)

    @T.prim_func(private=True)
    def matmul(a: T.handle, w: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), dtype)
        W = T.match_buffer(w, (outputs, inputs), dtype)
        Y = T.match_buffer(y, (m, outputs), out_dtype)
        T.device_entry()
        number = T.cta_id([T.Select(m <= small.rows, tiles(small, m), tiles(large, m))])
        tx = T.thread_id([large.threads])
        arena = roomier.arena()
        compute(A, W, Y, arena, m, number, tx)

    return matmul
