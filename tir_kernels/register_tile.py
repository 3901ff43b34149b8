"""A matrix product held in vector registers, the inner loop of every product on the CPU.

``rows`` rows by two vectors of columns accumulate in float32 while k runs: per k, two vector loads
of the right side and one broadcast per row of the left feed 2 * rows multiply-adds. Rows that do
not fill a tile go by fours, twos and ones; their sum over k is split into parts so that a short
tile still has enough independent additions in flight to hide their latency.
"""

from __future__ import annotations

from tvm.script import tirx as T

from .vector_unit import VectorUnit


def _parts(rows: int, unit: VectorUnit) -> int:
    """How many parts the sum over k is split into for a tile of ``rows`` rows."""
    return max(1, min(4, unit.rows // rows))


def register_tile(rows: int, unit: VectorUnit, left, right, store):
    """An inline ``tile(operands, row0, depth)``: rows x panel sums over k < depth, then ``store``.

    ``left(operands, row, k)`` and ``right(operands, k, column)`` give float32 elements, column
    counting within the panel. ``store(operands, acc0, acc1, r, row)`` is an inline that ends one
    row; its two vectors of sums stand at ``acc0[r, :]`` and ``acc1[r, :]``.
    """
    lanes = unit.lanes
    parts = _parts(rows, unit)

    @T.inline
    def multiply_add(operands, acc0, acc1, part, row0, k):
        for r in T.unroll(rows):
            for j in T.vectorized(lanes):
                acc0[part * rows + r, j] = acc0[part * rows + r, j] + left(
                    operands, row0 + r, k
                ) * right(operands, k, j)
            for j in T.vectorized(lanes):
                acc1[part * rows + r, j] = acc1[part * rows + r, j] + left(
                    operands, row0 + r, k
                ) * right(operands, k, lanes + j)

    @T.inline
    def tile(operands, row0, depth):
        acc0 = T.alloc_buffer((parts * rows, lanes), "float32")
        acc1 = T.alloc_buffer((parts * rows, lanes), "float32")
        for r in T.unroll(parts * rows):
            for j in T.vectorized(lanes):
                acc0[r, j] = T.float32(0)
            for j in T.vectorized(lanes):
                acc1[r, j] = T.float32(0)
        for ko in T.serial(depth // parts):
            for part in T.unroll(parts):
                multiply_add(operands, acc0, acc1, part, row0, ko * parts + part)
        for k in T.serial(depth % parts):
            multiply_add(operands, acc0, acc1, 0, row0, depth // parts * parts + k)
        for r in T.unroll(rows):
            for part in T.unroll(parts - 1):
                for j in T.vectorized(lanes):
                    acc0[r, j] = acc0[r, j] + acc0[(part + 1) * rows + r, j]
                for j in T.vectorized(lanes):
                    acc1[r, j] = acc1[r, j] + acc1[(part + 1) * rows + r, j]
            store(operands, acc0, acc1, r, row0 + r)

    return tile


def row_tiles(unit: VectorUnit, left, right, store):
    """An inline ``rows(operands, row0, count, depth)``: tiles over ``count`` rows from ``row0``."""
    full, quad, pair, single = (
        register_tile(size, unit, left, right, store) for size in (unit.rows, 4, 2, 1)
    )

    @T.inline
    def rows(operands, row0, count, depth):
        for tile in T.serial(count // unit.rows):
            full(operands, row0 + tile * unit.rows, depth)
        for tile in T.serial(count % unit.rows // 4):
            quad(operands, row0 + count // unit.rows * unit.rows + tile * 4, depth)
        for tile in T.serial(count % unit.rows % 4 // 2):
            pair(operands, row0 + count - count % unit.rows % 4, depth)
        for tile in T.serial(count % unit.rows % 4 % 2):
            single(operands, row0 + count - 1, depth)

    return rows


def panel_store(outputs: int, unit: VectorUnit, write):
    """A ``store`` for panels along a row of ``outputs`` elements, the last panel perhaps cut.

    ``write(operands, row, column, value)`` is an inline that ends one element. The number of the
    panel is ``operands[0]``.
    """
    lanes = unit.lanes

    @T.inline
    def whole(operands, acc0, acc1, r, row):
        for j in T.vectorized(lanes):
            write(operands, row, operands[0] * unit.panel + j, acc0[r, j])
        for j in T.vectorized(lanes):
            write(operands, row, operands[0] * unit.panel + lanes + j, acc1[r, j])

    @T.inline
    def cut(operands, acc0, acc1, r, row):
        spilled = T.alloc_buffer((2 * lanes,), "float32")
        for j in T.vectorized(lanes):
            spilled[j] = acc0[r, j]
        for j in T.vectorized(lanes):
            spilled[lanes + j] = acc1[r, j]
        for j in T.serial(T.min(unit.panel, outputs - operands[0] * unit.panel)):
            write(operands, row, operands[0] * unit.panel + j, spilled[j])

    return cut if outputs % unit.panel else whole
