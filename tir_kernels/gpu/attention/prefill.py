"""Attention of many consecutive queries of one sequence, portable: two products with a softmax.

A head's output row (vh = 2048 in the 7B model) does not fit in registers beside its scores, so the
softmax probabilities are written once, [H, m, 2C], and multiplied with the values tile by tile.
Column j of the probabilities is the key in ring row j. A block is what a CTA makes for its query
rows from one half of the ring after the other: the previous chunk's keys, then its own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from tvm.script import tirx as T

from ...vector_math import f32, largest
from ..gate import silu
from ..register_tile import RegisterTile
from ..tensor_core import TensorTile
from ..vectors import vector_width

# Probabilities are written for whole blocks of this many query rows and columns, as far as any of
# the block's queries sees: the tiles of ``attention`` may then read them without a mask.
BLOCK = 128
_LOG2E = 1.4426950408889634
_LOWEST = -3.402823466e38


def _on_tensor_cores(dtype: str, z_head: int, v_head: int, chunk: int) -> bool:
    return dtype != "float32" and z_head % 32 == 0 and v_head % 8 == 0 and chunk % BLOCK == 0


@functools.cache
def memory_cast(heads: int, z_head: int, v_head: int, layers: int, dtype: str):
    """A slot's memory [H, zh, vh] in the dtype of the products."""
    threads = 256

    @T.prim_func(private=True)
    def memory_cast(slots: T.handle, memory: T.handle, layer: T.int64, cast: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        Memory = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        Cast = T.match_buffer(cast, (heads, z_head, v_head), dtype)
        T.device_entry()
        block, k, head = T.cta_id([(v_head + threads - 1) // threads, z_head, heads])
        tx = T.thread_id([threads])
        column: T.let = block * threads + tx
        if column < v_head:
            Cast[head, k, column] = T.Cast(dtype, Memory[layer, Slots[0], head, k, column])

    return memory_cast


class _Block(NamedTuple):
    """Where a CTA's query rows and keys are; key blocks of the previous chunk come first."""

    queries: Any
    layer: Any
    slot: Any
    head: Any
    row0: Any
    m: Any
    start: Any  # the index of query row 0 in its chunk
    own_row: Any  # the ring row of the own chunk's first key
    previous: Any  # blocks of keys in the previous chunk, then in both
    blocks: Any

    def place(self, number, width: int):
        """Whether key block ``number`` is in the own chunk, and the index of its first key there.

        The blocks may be passed twice.
        """
        number = number - T.Select(number >= self.blocks, self.blocks, 0)
        own = number >= self.previous
        return own, (number - T.Select(own, self.previous, 0)) * width


def _own_columns(start, row0, m, rows: int, chunk: int):
    """Keys of the own chunk that a block of ``rows`` query rows sees."""
    return T.min(start + T.min(row0 + rows, m), chunk)


@functools.cache
def attention_weights(heads: int, z_head: int, v_head: int, chunk: int, layers: int, dtype: str):
    """Softmax probabilities [H, m, 2C] of queries [3, m, S]; zero where masked, up to the frontier.

    One pass over the keys takes each row's maximum and sum, a second one computes the scores again
    and writes.
    """
    z_dim = heads * z_head
    tile: TensorTile | RegisterTile
    if _on_tensor_cores(dtype, z_head, v_head, chunk):
        tile = TensorTile(dtype, rows=64, columns=128, warp_rows=2, warp_columns=4)
    else:
        tile = RegisterTile()
    vector = vector_width(dtype, tile.width, chunk)
    steps = (z_head + tile.depth - 1) // tile.depth
    chunk_blocks = (chunk + tile.columns - 1) // tile.columns
    run_sums = tile.width * tile.runs_of_row
    thread_rows = tile.accumulators // run_sums

    def power(x):
        """exp(x) for x <= 0, as exactly as the probabilities are kept."""
        return T.exp(x) if dtype == "float32" else T.exp2(x * f32(_LOG2E))

    def depth_of(step, k):
        depth = step % steps * tile.depth + k
        return depth, depth < z_head if z_head % tile.depth else None

    def query(operands, row, step, k):
        block = operands[0]
        own, _ = block.place(step // steps, tile.columns)
        depth, inside = depth_of(step, k)
        row = T.min(block.row0 + row, block.m - 1)
        return block.queries, [T.Select(own, 0, 1), row, block.head * z_head + depth], inside

    def key(operands, column, step, k):
        block, keys = operands[:2]
        own, first = block.place(step // steps, tile.columns)
        depth, inside = depth_of(step, k)
        base = T.Select(own, block.own_row, chunk - block.own_row)
        ring_row = base + T.min(first + column, chunk - 1)
        return keys, [block.layer, block.slot, ring_row, block.head * z_head + depth], inside

    @T.inline
    def mask(block, sums, number, tx):
        place = T.meta_var(block.place(number, tile.columns))
        for i in T.unroll(thread_rows):
            row: T.let = block.row0 + tile.row(tx, i * tile.runs_of_row)
            last: T.let = T.Select(place[0], block.start + row, chunk - 1)
            for run in T.unroll(tile.runs_of_row):
                column: T.let = place[1] + tile.column(tx, run)
                for j in T.unroll(tile.width):
                    index = T.meta_var(i * run_sums + run * tile.width + j)
                    sums[index] = T.if_then_else(column + j <= last, sums[index], f32(_LOWEST))

    @T.inline
    def accumulate(sums, highest, total, tx):
        """Each row's maximum and sum, over the columns that this thread has seen."""
        for i in T.unroll(thread_rows):
            before: T.let = highest[i]
            highest[i] = T.max(before, largest([sums[i * run_sums + j] for j in range(run_sums)]))
            total[i] = total[i] * power(before - highest[i])
            for j in T.unroll(run_sums):
                total[i] = total[i] + power(sums[i * run_sums + j] - highest[i])

    @T.inline
    def share(highest, total, shared_rows, tx):
        """Each row's maximum, and one over its sum, over all columns."""
        for i in T.unroll(thread_rows):
            shared_rows[0, tile.row(tx, i * tile.runs_of_row), tile.sharer(tx)] = highest[i]
            shared_rows[1, tile.row(tx, i * tile.runs_of_row), tile.sharer(tx)] = total[i]
        T.tvm_storage_sync("shared")
        for i in T.unroll(thread_rows):
            row: T.let = tile.row(tx, i * tile.runs_of_row)
            for sharer in T.unroll(tile.sharers):
                highest[i] = T.max(highest[i], shared_rows[0, row, sharer])
            total[i] = f32(0.0)
            for sharer in T.unroll(tile.sharers):
                total[i] = total[i] + shared_rows[1, row, sharer] * power(
                    shared_rows[0, row, sharer] - highest[i]
                )
            total[i] = f32(1.0) / total[i]

    @T.inline
    def write(block, weights, sums, highest, total, number, tx):
        place = T.meta_var(block.place(number, tile.columns))
        base: T.let = T.Select(place[0], block.own_row, chunk - block.own_row)
        rounded = T.alloc_local((vector,), dtype)
        for i in T.unroll(thread_rows):
            row: T.let = block.row0 + tile.row(tx, i * tile.runs_of_row)
            for run in T.unroll(tile.runs_of_row):
                for part in T.unroll(tile.width // vector):
                    column: T.let = place[1] + tile.column(tx, run) + part * vector
                    for j in T.unroll(vector):
                        rounded[j] = T.Cast(
                            dtype,
                            power(
                                sums[i * run_sums + run * tile.width + part * vector + j]
                                - highest[i]
                            )
                            * total[i],
                        )
                    if row < block.m and column < chunk:
                        for j in T.vectorized(vector):
                            weights[block.head, row, base + column + j] = rounded[j]

    @T.inline
    def finish(operands, sums, number, tx):
        """After each key block, of the first pass and then of the second."""
        block, _, weights, highest, total, shared_rows = operands
        mask(block, sums, number, tx)
        if number < block.blocks:
            accumulate(sums, highest, total, tx)
            if number == block.blocks - 1:
                share(highest, total, shared_rows, tx)
        else:
            write(block, weights, sums, highest, total, number, tx)
        for i in T.unroll(tile.accumulators):
            sums[i] = f32(0.0)

    product = tile.product(query, key, finish, steps)

    @T.prim_func(private=True)
    def attention_weights(
        queries: T.handle,
        slots: T.handle,
        position: T.handle,
        keys: T.handle,
        layer: T.int64,
        weights: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        Queries = T.match_buffer(queries, (3, m, z_dim), dtype)
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Weights = T.match_buffer(weights, (heads, m, 2 * chunk), dtype)
        T.device_entry()
        tiles: T.let = (m + tile.rows - 1) // tile.rows
        head, order = T.cta_id([heads, (m + tile.rows - 1) // tile.rows])
        tx = T.thread_id([tile.threads])
        arena = T.alloc_buffer((tile.shared_bytes,), "uint8", scope=tile.scope)
        shared = tile.shared(arena)
        shared_rows = T.alloc_shared((2, tile.rows, tile.sharers), "float32")
        sums = T.alloc_local((tile.accumulators,), "float32")
        highest = T.alloc_local((thread_rows,), "float32")
        total = T.alloc_local((thread_rows,), "float32")
        slot: T.int32 = Slots[0]
        start: T.int32 = Position[slot] % chunk
        own_row: T.int32 = Position[slot] % (2 * chunk) - start
        # The last rows see the most keys: they begin first.
        row0: T.int32 = (tiles - 1 - order) * tile.rows
        seen: T.int32 = _own_columns(start, row0 // BLOCK * BLOCK, m, BLOCK, chunk)
        previous: T.int32 = T.Select(Position[slot] >= chunk, chunk_blocks, 0)
        blocks: T.int32 = previous + (seen + tile.columns - 1) // tile.columns
        for i in T.unroll(tile.accumulators):
            sums[i] = f32(0.0)
        for i in T.unroll(thread_rows):
            highest[i] = f32(_LOWEST)
            total[i] = f32(0.0)
        block = T.meta_var(
            _Block(Queries, layer, slot, head, row0, m, start, own_row, previous, blocks)
        )
        product(
            (block, Keys, Weights, highest, total, shared_rows),
            shared,
            sums,
            2 * blocks * steps,
            tx,
        )

    return attention_weights


@functools.cache
def attention(
    heads: int, z_head: int, v_head: int, model_dim: int, chunk: int, layers: int, dtype: str
):
    """gated [m, E] = silu(r) * (weights @ values) + features @ memory.

    r is columns S to S+E of ``projected`` plus ``bias`` [P], features are queries[2], memory is
    [H, zh, vh].
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    tile: TensorTile | RegisterTile
    if _on_tensor_cores(dtype, z_head, v_head, chunk):
        tile = TensorTile(dtype, 128, 256, warp_rows=2, warp_columns=4, right_by_depth=True)
    else:
        tile = RegisterTile(right_by_depth=True)
    vector = vector_width(dtype, tile.width, v_head, z_dim, columns)
    chunk_steps = (chunk + tile.depth - 1) // tile.depth

    def inside(k, extent: int):
        return k < extent if extent % tile.depth else None

    def weight(operands, row, step, k):
        block, weights = operands[:2]
        own, first = block.place(step, tile.depth)
        base = T.Select(own, block.own_row, chunk - block.own_row)
        row = T.min(block.row0 + row, block.m - 1)
        return weights, [block.head, row, base + first + k], inside(first + k, chunk)

    def value(operands, column, step, k):
        block, _, values, column0 = operands
        own, first = block.place(step, tile.depth)
        base = T.Select(own, block.own_row, chunk - block.own_row)
        # Rows after the last key have weight zero, but hold anything.
        last = T.Select(own, block.start + block.m, chunk) - 1
        row = base + T.min(first + k, last)
        column = block.head * v_head + T.min(column0 + column, v_head - tile.group)
        return values, [block.layer, block.slot, row, column], inside(first + k, chunk)

    def feature(operands, row, step, k):
        block = operands[0]
        depth = step * tile.depth + k
        row = T.min(block.row0 + row, block.m - 1)
        return block.queries, [2, row, block.head * z_head + depth], inside(depth, z_head)

    def memory_value(operands, column, step, k):
        block, memory, column0 = operands
        depth = step * tile.depth + k
        column = T.min(column0 + column, v_head - tile.group)
        return memory, [block.head, depth, column], inside(depth, z_head)

    attend = tile.product(weight, value)
    read_memory = tile.product(feature, memory_value)

    @T.inline
    def gate(block, projected, bias, column0, sums, tx):
        raw = T.alloc_local((vector,), dtype)
        for run in T.unroll(tile.accumulators // tile.width):
            row: T.let = T.min(block.row0 + tile.row(tx, run), block.m - 1)
            for part in T.unroll(tile.width // vector):
                column: T.let = (
                    z_dim
                    + block.head * v_head
                    + T.min(column0 + tile.column(tx, run) + part * vector, v_head - vector)
                )
                for j in T.vectorized(vector):
                    raw[j] = projected[row, column + j]
                for j in T.unroll(vector):
                    index = T.meta_var(run * tile.width + part * vector + j)
                    r: T.let = T.Cast("float32", raw[j]) + bias[column + j]
                    sums[index] = sums[index] * silu(r)

    @T.inline
    def write(block, gated, column0, sums, tx):
        rounded = T.alloc_local((vector,), dtype)
        for run in T.unroll(tile.accumulators // tile.width):
            row: T.let = block.row0 + tile.row(tx, run)
            for part in T.unroll(tile.width // vector):
                column: T.let = column0 + tile.column(tx, run) + part * vector
                for j in T.unroll(vector):
                    rounded[j] = T.Cast(dtype, sums[run * tile.width + part * vector + j])
                if row < block.m and column < v_head:
                    for j in T.vectorized(vector):
                        gated[row, block.head * v_head + column + j] = rounded[j]

    @T.prim_func(private=True)
    def attention(
        weights: T.handle,
        queries: T.handle,
        values: T.handle,
        memory: T.handle,
        projected: T.handle,
        bias: T.handle,
        slots: T.handle,
        position: T.handle,
        layer: T.int64,
        gated: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        Weights = T.match_buffer(weights, (heads, m, 2 * chunk), dtype)
        Queries = T.match_buffer(queries, (3, m, z_dim), dtype)
        Values = T.match_buffer(values, (layers, num_slots, 2 * chunk, value_dim), dtype)
        Memory = T.match_buffer(memory, (heads, z_head, v_head), dtype)
        Projected = T.match_buffer(projected, (m, columns), dtype)
        Bias = T.match_buffer(bias, (columns,), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Gated = T.match_buffer(gated, (m, value_dim), dtype)
        T.device_entry()
        tiles: T.let = (m + tile.rows - 1) // tile.rows
        # Neighbours share a head's values in the cache.
        order, column_tile, head = T.cta_id(
            [
                (m + tile.rows - 1) // tile.rows,
                (v_head + tile.columns - 1) // tile.columns,
                heads,
            ]
        )
        tx = T.thread_id([tile.threads])
        arena = T.alloc_buffer((tile.shared_bytes,), "uint8", scope=tile.scope)
        shared = tile.shared(arena)
        sums = T.alloc_local((tile.accumulators,), "float32")
        slot: T.int32 = Slots[0]
        start: T.int32 = Position[slot] % chunk
        own_row: T.int32 = Position[slot] % (2 * chunk) - start
        row0: T.int32 = (tiles - 1 - order) * tile.rows
        column0: T.int32 = column_tile * tile.columns
        seen: T.int32 = _own_columns(start, row0, m, tile.rows, chunk)
        previous: T.int32 = T.Select(Position[slot] >= chunk, chunk_steps, 0)
        blocks: T.int32 = previous + (seen + tile.depth - 1) // tile.depth
        block = T.meta_var(
            _Block(Queries, layer, slot, head, row0, m, start, own_row, previous, blocks)
        )
        for i in T.unroll(tile.accumulators):
            sums[i] = f32(0.0)
        attend((block, Weights, Values, column0), shared, sums, blocks, tx)
        gate(block, Projected, Bias, column0, sums, tx)
        read_memory(
            (block, Memory, column0), shared, sums, (z_head + tile.depth - 1) // tile.depth, tx
        )
        write(block, Gated, column0, sums, tx)

    return attention
