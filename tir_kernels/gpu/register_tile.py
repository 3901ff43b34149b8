"""A tile of a matrix product in float32 registers: any shape, any dtype, no tensor cores.

The counterpart of ``tensor_core.TensorTile``, with the same members. 128 x 128 sums are held by 256
threads, 8 x 8 each, as four blocks of 4 x 4 that lie 64 rows and columns apart, so that the threads
of a warp read neighbouring words. The next depth is fetched while this one is multiplied.
"""

from __future__ import annotations

import dataclasses
import math

from tvm.script import tirx as T

# Words of a row of shared memory beyond the tile: where the lanes of a warp, 4 rows by 8 depths,
# then store to different banks.
_PAD = 4


@dataclasses.dataclass(frozen=True)
class RegisterTile:
    """128 x 128 float32 sums; the right operand is read along its rows [N, K] or [K, N]."""

    right_by_depth: bool = False

    rows = 128
    columns = 128
    depth = 8
    threads = 256
    width = 4
    group = 1
    scope = "shared"
    runs_of_row = 2
    accumulators = 64
    sharers = 16

    @property
    def _shared_shape(self) -> tuple[int, ...]:
        """Two stages of a left and a right tile."""
        return 2, 2, self.depth, self.rows + _PAD

    @property
    def shared_bytes(self) -> int:
        return 4 * math.prod(self._shared_shape)

    def shared(self, arena):
        return T.decl_buffer(self._shared_shape, "float32", data=arena.data, scope=self.scope)

    def row(self, tx, run):
        index = run // self.runs_of_row
        return index // 4 * 64 + tx // 16 * 4 + index % 4

    def column(self, tx, run):
        return run % self.runs_of_row * 64 + tx % 16 * 4

    def sharer(self, tx):
        return tx % 16

    def product(self, left, right):
        """As ``TensorTile.product``; ``left`` and ``right`` are asked for single elements."""
        depth, threads, size = self.depth, self.threads, self.rows
        loads = size * depth // threads
        by_depth = self.right_by_depth

        def placed(number, along_depth: bool):
            """Row and depth of one of a tile's elements, neighbours being consecutive in memory."""
            if along_depth:
                return number // depth, number % depth
            return number % size, number // size

        def element(operand, operands, step, number, along_depth: bool):
            row, k = placed(number, along_depth)
            buffer, indices, inside = operand(operands, row, step, k)
            value = T.Cast("float32", buffer[tuple(indices)])
            return value if inside is None else T.if_then_else(inside, value, T.float32(0))

        @T.inline
        def fetch(operands, next_left, next_right, step, tx):
            for i in T.unroll(loads):
                next_left[i] = element(left, operands, step, tx + i * threads, True)
            for i in T.unroll(loads):
                next_right[i] = element(right, operands, step, tx + i * threads, not by_depth)

        @T.inline
        def put(shared, stage, side: int, values, tx, along_depth: bool):
            for i in T.unroll(loads):
                place = T.meta_var(placed(tx + i * threads, along_depth))
                shared[stage, side, place[1], place[0]] = values[i]

        @T.inline
        def load(shared, stage, side: int, k, first, values):
            for block in T.unroll(2):
                for j in T.vectorized(4):
                    values[block * 4 + j] = shared[stage, side, k, block * 64 + first + j]

        @T.inline
        def product(operands, shared, sums, steps, tx):
            next_left = T.alloc_local((loads,), "float32")
            next_right = T.alloc_local((loads,), "float32")
            a = T.alloc_local((8,), "float32")
            b = T.alloc_local((8,), "float32")
            if steps > 0:
                fetch(operands, next_left, next_right, 0, tx)
            for step in T.serial(steps):
                put(shared, step % 2, 0, next_left, tx, True)
                put(shared, step % 2, 1, next_right, tx, not by_depth)
                T.tvm_storage_sync("shared")
                if step + 1 < steps:
                    fetch(operands, next_left, next_right, step + 1, tx)
                for k in T.unroll(depth):
                    load(shared, step % 2, 0, k, tx // 16 * 4, a)
                    load(shared, step % 2, 1, k, tx % 16 * 4, b)
                    for i in T.unroll(8):
                        for j in T.unroll(8):
                            sums[i * 8 + j] = sums[i * 8 + j] + a[i] * b[j]
            T.tvm_storage_sync("shared")

        return product
