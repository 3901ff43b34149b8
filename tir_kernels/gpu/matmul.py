"""Matrix products of prefill, y = a @ w^T: a [m, K], m dynamic; w [N, K] as in the checkpoint."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .register_tile import RegisterTile
from .tensor_core import CHUNK, TensorTile
from .vectors import vector_width


@functools.cache
def matmul(inputs: int, outputs: int, dtype: str, out_dtype: str):
    """y [m, N] of ``out_dtype``, each element rounded once from a float32 sum.

    Tiles of the same columns run together: what is read of w serves all rows from the cache.
    """
    tile: TensorTile | RegisterTile
    if dtype != "float32" and inputs % CHUNK == 0:
        tile = TensorTile(dtype, rows=128, columns=256, warp_rows=2, warp_columns=4)
    else:
        tile = RegisterTile()
    vector = vector_width(out_dtype, tile.width, outputs)

    def inside(depth):
        return depth < inputs if inputs % tile.depth else None

    def left(operands, row, step, k):
        a, _, m, row0, _ = operands
        depth = step * tile.depth + k
        return a, [T.min(row0 + row, m - 1), depth], inside(depth)

    def right(operands, column, step, k):
        _, w, _, _, column0 = operands
        depth = step * tile.depth + k
        return w, [T.min(column0 + column, outputs - 1), depth], inside(depth)

    product = tile.product(left, right)

    @T.inline
    def store(Y, row, column, sums, first):
        rounded = T.alloc_local((vector,), out_dtype)
        for j in T.unroll(vector):
            rounded[j] = T.Cast(out_dtype, sums[first + j])
        for j in T.vectorized(vector):
            Y[row, column + j] = rounded[j]

    @T.prim_func(private=True)
    def matmul(a: T.handle, w: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), dtype)
        W = T.match_buffer(w, (outputs, inputs), dtype)
        Y = T.match_buffer(y, (m, outputs), out_dtype)
        T.device_entry()
        row_tile, column_tile = T.cta_id(
            [(m + tile.rows - 1) // tile.rows, (outputs + tile.columns - 1) // tile.columns]
        )
        tx = T.thread_id([tile.threads])
        arena = T.alloc_buffer((tile.shared_bytes,), "uint8", scope=tile.scope)
        shared = tile.shared(arena)
        sums = T.alloc_local((tile.accumulators,), "float32")
        for i in T.unroll(tile.accumulators):
            sums[i] = T.float32(0)
        product(
            (A, W, m, row_tile * tile.rows, column_tile * tile.columns),
            shared,
            sums,
            (inputs + tile.depth - 1) // tile.depth,
            tx,
        )
        for run in T.unroll(tile.accumulators // tile.width):
            row: T.let = row_tile * tile.rows + tile.row(tx, run)
            column: T.let = column_tile * tile.columns + tile.column(tx, run)
            if row < m:
                for part in T.unroll(tile.width // vector):
                    if column + part * vector < outputs:
                        store(
                            Y, row, column + part * vector, sums, run * tile.width + part * vector
                        )

    return matmul
