"""A tile of a matrix product in float32 registers: any shape, any dtype, no tensor cores.

The counterpart of ``tensor_core.TensorTile``, with the same members. A thread holds 8 x 8 sums as
four blocks of 4 x 4 that lie half a tile apart, so that the threads of a warp read neighbouring
words. Both operands lie in shared memory by depth, in float32; the next depth is on its way to
registers while this one is multiplied.
"""

from __future__ import annotations

import dataclasses

from tvm.script import tirx as T

_BANKS = 32


@dataclasses.dataclass(frozen=True)
class RegisterTile:
    """threads / 2 x 128 float32 sums; the right operand is read along its rows [N, K] or [K, N].

    ``group`` elements of an operand are read at a time, at most 8.
    """

    dtype: str
    threads: int
    group: int = 1
    right_by_depth: bool = False

    columns = 128
    depth = 16
    width = 4
    runs_of_row = 2
    accumulators = 64
    sharers = 16

    @property
    def rows(self) -> int:
        return self.threads // 2

    @property
    def shared_bytes(self) -> int:
        return 4 * self.depth * (self.rows + self.columns)

    def arena(self):
        return T.alloc_shared((self.shared_bytes // 4,), "float32")

    def shared(self, arena):
        return arena

    def scratch(self, arena, shape: tuple[int, ...]):
        return T.decl_buffer(shape, "float32", data=arena.data, scope="shared")

    def row(self, tx, run):
        index = run // self.runs_of_row
        return index // 4 * (self.rows // 2) + tx // 16 * 4 + index % 4

    def column(self, tx, run):
        return run % self.runs_of_row * 64 + tx % 16 * 4

    def sharer(self, tx):
        return tx % 16

    def _turned(self, row, k):
        """Where a row stands at depth k if its depths were stored together: in another bank each.

        Four neighbours stay neighbours.
        """
        step = max(1, _BANKS // 4 * self.group // self.depth)
        return (row // 4 ^ (k // self.group % (_BANKS // 4 // step) * step)) * 4 + row % 4

    def product(self, left, right):
        """As ``TensorTile.product``; operands are asked for ``group`` elements."""
        dtype, depth, threads, group = self.dtype, self.depth, self.threads, self.group
        rows, columns, by_depth = self.rows, self.columns, self.right_by_depth
        narrow = min(group, 4)
        left_loads = rows * depth // (threads * group)
        right_loads = columns * depth // (threads * group)

        def placed(number, size: int, along_depth: bool):
            """Row and depth of one of a tile's groups, neighbours being consecutive in memory."""
            if along_depth:
                return number // (depth // group), number % (depth // group) * group
            return number % (size // group) * group, number // (size // group)

        def element(buffer, indices, j):
            # The compiler must see that a group is aligned, or it loads single elements.
            *outer, last = indices
            return buffer[(*outer, (last // group * group if group > 1 else last) + j)]

        @T.inline
        def load_group(values, at, buffer, indices, inside):
            if inside is None:
                for j in T.vectorized(group):
                    values[at + j] = element(buffer, indices, j)
            else:
                if inside:
                    for j in T.vectorized(group):
                        values[at + j] = element(buffer, indices, j)
                else:
                    for j in T.unroll(group):
                        values[at + j] = T.Cast(dtype, T.float32(0))

        @T.inline
        def fetch(operands, next_left, next_right, step, tx):
            for i in T.unroll(left_loads):
                place = T.meta_var(placed(tx + i * threads, rows, True))
                found = T.meta_var(left(operands, place[0], step, place[1]))
                load_group(next_left, i * group, found[0], found[1], found[2])
            for i in T.unroll(right_loads):
                place = T.meta_var(placed(tx + i * threads, columns, not by_depth))
                found = T.meta_var(right(operands, place[0], step, place[1]))
                load_group(next_right, i * group, found[0], found[1], found[2])

        @T.inline
        def put_along_depth(shared, base, size, loads, values, tx):
            for i in T.unroll(loads):
                place = T.meta_var(placed(tx + i * threads, size, True))
                for j in T.unroll(group):
                    k = T.meta_var(place[1] + j)
                    shared[base + k * size + self._turned(place[0], k)] = T.Cast(
                        "float32", values[i * group + j]
                    )

        @T.inline
        def put_by_depth(shared, base, size, loads, values, tx):
            wide = T.alloc_local((narrow,), "float32")
            for i in T.unroll(loads):
                place = T.meta_var(placed(tx + i * threads, size, False))
                for part in T.unroll(group // narrow):
                    at = T.meta_var(base + place[1] * size + place[0] + part * narrow)
                    for j in T.unroll(narrow):
                        wide[j] = T.Cast("float32", values[i * group + part * narrow + j])
                    for j in T.vectorized(narrow):
                        shared[at + j] = wide[j]

        put_right = put_by_depth if by_depth else put_along_depth

        @T.inline
        def load(shared, base, size, k, first, turned, values):
            for block in T.unroll(2):
                row = T.meta_var(block * (size // 2) + first)
                at = T.meta_var(base + k * size + (self._turned(row, k) if turned else row))
                for j in T.vectorized(4):
                    values[block * 4 + j] = shared[at + j]

        @T.inline
        def product(operands, shared, sums, steps, tx):
            next_left = T.alloc_local((left_loads * group,), dtype)
            next_right = T.alloc_local((right_loads * group,), dtype)
            a = T.alloc_local((8,), "float32")
            b = T.alloc_local((8,), "float32")
            if steps > 0:
                fetch(operands, next_left, next_right, 0, tx)
            for step in T.serial(steps):
                put_along_depth(shared, 0, rows, left_loads, next_left, tx)
                put_right(shared, rows * depth, columns, right_loads, next_right, tx)
                T.tvm_storage_sync("shared")
                if step + 1 < steps:
                    fetch(operands, next_left, next_right, step + 1, tx)
                for part in T.serial(depth // 8):
                    for inner in T.unroll(8):
                        k = T.meta_var(part * 8 + inner)
                        load(shared, 0, rows, k, tx // 16 * 4, True, a)
                        load(shared, rows * depth, columns, k, tx % 16 * 4, not by_depth, b)
                        for i in T.unroll(8):
                            for j in T.unroll(8):
                                sums[i * 8 + j] = sums[i * 8 + j] + a[i] * b[j]
                T.tvm_storage_sync("shared")

        return product
