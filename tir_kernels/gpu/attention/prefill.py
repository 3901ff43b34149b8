"""Attention of many consecutive queries of one sequence, portable: two products with a softmax.

A head's output row (vh = 2048 in the 7B model) does not fit in registers beside its scores, so the
softmax probabilities are written once, [H, m, 2C], and multiplied with the values tile by tile.
Column j of the probabilities is the key in ring row j. Keys come in blocks, those of the previous
chunk first, then those of the queries' own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from tvm.script import tirx as T

from ...vector_math import LOG2E, f32, largest
from ..elementary import power_of_two, silu
from ..tensor_core import TensorTile, both
from ..tiles import product_tile
from ..unit import GpuUnit
from ..vectors import vector_width

# The score of a key that must not be seen, and the least peak of a sum: above a hidden score times
# LOG2E by so much that its power is zero, however the difference is rounded.
_HIDDEN, _LEAST_PEAK = -1e30, -1e29


def _tile(
    unit: GpuUnit, dtype: str, z_head: int, v_head: int, chunk: int, right_by_depth: bool = False
):
    """Of either kernel: probabilities are written for whole tiles, as far as any of a tile's
    queries sees, and tiles of the same rows may then read them without a mask."""
    ptx = TensorTile(dtype, 128, 128, 2, 2, right_by_depth, stages=3, depth=64)
    aligned = z_head % 32 == 0 and v_head % 8 == 0 and chunk % ptx.columns == 0
    return product_tile(unit, dtype, ptx, aligned)


@functools.cache
def memory_cast(heads: int, z_head: int, v_head: int, layers: int, dtype: str, unit: GpuUnit):
    """A slot's memory [H, zh, vh] in the dtype of the products."""
    threads = unit.cta(256)

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


class _Rows(NamedTuple):
    """A CTA's queries and where their keys are: in the previous chunk, then in their own."""

    queries: Any
    layer: Any
    slot: Any
    head: Any
    row0: Any
    m: Any
    start: Any  # the index of query row 0 in its chunk
    own_row: Any  # the ring row of the own chunk's first key
    previous: Any  # blocks of keys in the previous chunk

    def existing(self, row):
        """Query row ``row`` of the CTA's, the last of all in the place of one past it, whose
        results are not stored."""
        return T.min(self.row0 + row, self.m - 1)

    def half(self, number, width: int):
        """Of key block ``number``: whether it is in the own chunk, its first index in that half."""
        own = number >= self.previous
        return own, (number - T.Select(own, self.previous, 0)) * width

    def seen(self, rows: int, chunk: int):
        """Keys of the own chunk that ``rows`` query rows see, the last of them all."""
        return T.min(self.start + T.min(self.row0 + rows, self.m), chunk)


class _Scores(NamedTuple):
    """A block of keys for a CTA's queries."""

    rows: _Rows
    keys: Any  # [layers * slots, 2C, S]
    ring: Any
    kind: Any  # which of the queries: 0 for keys of the own chunk, 1 for the previous one's
    base: Any  # the ring row of that chunk's first key
    first: Any  # the block's first key, counted from there


@functools.cache
def attention_weights(
    heads: int, z_head: int, v_head: int, chunk: int, layers: int, dtype: str, unit: GpuUnit
):
    """Softmax probabilities [H, m, 2C] of queries [3, m, S]; zero where masked, up to the frontier.

    One kernel computes the scores and sums their exponentials over each block of keys, a second one
    computes the scores again and writes: twice a product is less than scores written and read.
    """
    z_dim = heads * z_head
    tile = _tile(unit, dtype, z_head, v_head, chunk)
    vector = vector_width(dtype, tile.width, chunk)
    steps = -(-z_head // tile.depth)
    chunk_blocks = -(-chunk // tile.columns)
    run_sums = tile.width * tile.runs_of_row
    thread_rows = tile.accumulators // run_sums

    def within(depth):
        return depth < z_head if z_head % tile.depth else None

    def query(scores, row, step, k):
        rows = scores.rows
        depth = step * tile.depth + k
        indices = [scores.kind, rows.existing(row), rows.head * z_head + depth]
        return rows.queries, indices, within(depth)

    def key(scores, column, step, k):
        rows = scores.rows
        depth = step * tile.depth + k
        ring_row = scores.base + T.min(scores.first + column, chunk - 1)
        return scores.keys, [scores.ring, ring_row, rows.head * z_head + depth], within(depth)

    product = tile.product(query, key)

    @T.inline
    def compute(scores, shared, sums, tx):
        """Scores, hidden ones very low."""
        for i in T.unroll(tile.accumulators):
            sums[i] = f32(0.0)
        product(scores, shared, sums, steps, tx)
        # The last key of the block that query row 0 sees; a row further on sees one more.
        last: T.int32 = (
            T.Select(scores.kind == 0, scores.rows.start + scores.rows.row0, chunk - 1)
            - scores.first
        )
        if last < tile.columns - 1:
            for i in T.unroll(thread_rows):
                further = T.meta_var((1 - scores.kind) * tile.row(tx, i * tile.runs_of_row))
                for j in T.unroll(run_sums):
                    column = T.meta_var(tile.column(tx, j // tile.width) + j % tile.width)
                    if column > last + further:
                        sums[i * run_sums + j] = f32(_HIDDEN)

    # A sum of exponentials is 2^peak * total, the peak being the largest score in units of log(2).
    @T.inline
    def combine(peaks, totals, count, peak, total):
        """The sum of ``count`` sums; ``peaks(i)`` and ``totals(i)`` give their parts."""
        power = T.alloc_local((1,), "float32")
        peak[0] = peaks(0)
        for i in T.serial(count - 1):
            peak[0] = T.max(peak[0], peaks(i + 1))
        total[0] = f32(0.0)
        for i in T.serial(count):
            power_of_two(power[0], peaks(i) - peak[0])
            total[0] = total[0] + totals(i) * power[0]

    @T.inline
    def sums_of_block(scores, partial, weights, arena, number, blocks, sums, tx):
        """Each row's sum over this block, from what each thread has of it."""
        shares = tile.scratch(arena, (2, tile.rows, tile.sharers))
        peak = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        power = T.alloc_local((1,), "float32")
        for i in T.unroll(thread_rows):
            peak[0] = T.max(
                largest([sums[i * run_sums + j] for j in range(run_sums)]) * f32(LOG2E),
                f32(_LEAST_PEAK),
            )
            total[0] = f32(0.0)
            for j in T.unroll(run_sums):
                power_of_two(power[0], sums[i * run_sums + j] * f32(LOG2E) - peak[0])
                total[0] = total[0] + power[0]
            shares[0, tile.row(tx, i * tile.runs_of_row), tile.sharer(tx)] = peak[0]
            shares[1, tile.row(tx, i * tile.runs_of_row), tile.sharer(tx)] = total[0]
        T.tvm_storage_sync("shared")
        row: T.int32 = scores.rows.row0 + tx
        if tx < tile.rows and row < scores.rows.m:
            combine(
                lambda i: shares[0, tx, i], lambda i: shares[1, tx, i], tile.sharers, peak, total
            )
            partial[0, scores.rows.head, number, row] = peak[0]
            partial[1, scores.rows.head, number, row] = total[0]

    @T.inline
    def probabilities(scores, partial, weights, arena, number, blocks, sums, tx):
        """Each row's sum over all its blocks; the block's probabilities."""
        rows = T.meta_var(scores.rows)
        shared_rows = tile.scratch(arena, (2, tile.rows))
        peak = T.alloc_local((1,), "float32")
        total = T.alloc_local((1,), "float32")
        power = T.alloc_local((1,), "float32")
        rounded = T.alloc_local((vector,), dtype)
        if tx < tile.rows:
            row: T.int32 = T.min(rows.row0 + tx, rows.m - 1)
            combine(
                lambda i: partial[0, rows.head, i, row],
                lambda i: partial[1, rows.head, i, row],
                blocks,
                peak,
                total,
            )
            shared_rows[0, tx] = peak[0]
            shared_rows[1, tx] = f32(1.0) / total[0]
        T.tvm_storage_sync("shared")
        for i in T.unroll(thread_rows):
            place: T.int32 = tile.row(tx, i * tile.runs_of_row)
            peak[0] = shared_rows[0, place]
            total[0] = shared_rows[1, place]
            for part in T.unroll(run_sums // vector):
                inner = T.meta_var(part * vector % tile.width)
                column: T.int32 = (
                    scores.first + tile.column(tx, part * vector // tile.width) + inner
                )
                for j in T.unroll(vector):
                    score = T.meta_var(sums[i * run_sums + part * vector + j])
                    power_of_two(power[0], score * f32(LOG2E) - peak[0])
                    rounded[j] = T.Cast(dtype, power[0] * total[0])
                if rows.row0 + place < rows.m and column < chunk:
                    for j in T.vectorized(vector):
                        weights[rows.head, rows.row0 + place, scores.base + column + j] = rounded[j]

    def kernel(finish):
        """An inline: the scores of query rows and one block of keys, if they see it; ``finish``."""

        @T.inline
        def run(
            Queries, Slots, Position, Rings, Partial, Weights, layer, number, row_tile, head, m, tx
        ):
            slot: T.int32 = Slots[0]
            # In a variable: what the host multiplied would hide how addresses are aligned.
            ring: T.int64 = layer * Position.shape[0] + T.Cast("int64", slot)
            start: T.int32 = Position[slot] % chunk
            own_row: T.int32 = Position[slot] % (2 * chunk) - start
            previous: T.int32 = T.Select(Position[slot] >= chunk, chunk_blocks, 0)
            rows = T.meta_var(
                _Rows(Queries, layer, slot, head, row_tile * tile.rows, m, start, own_row, previous)
            )
            blocks: T.int32 = previous + T.ceildiv(rows.seen(tile.rows, chunk), tile.columns)
            if number < blocks:
                half = T.meta_var(rows.half(number, tile.columns))
                kind: T.int32 = T.Select(half[0], 0, 1)
                first: T.int32 = half[1]
                base: T.int32 = T.Select(half[0], own_row, chunk - own_row)
                scores = T.meta_var(_Scores(rows, Rings, ring, kind, base, first))
                arena = tile.arena()
                shared = tile.shared(arena)
                sums = T.alloc_local((tile.accumulators,), "float32")
                compute(scores, shared, sums, tx)
                finish(scores, Partial, Weights, arena, number, blocks, sums, tx)

        return run

    sum_up, write = kernel(sums_of_block), kernel(probabilities)

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
        Rings = T.decl_buffer((layers * num_slots, 2 * chunk, z_dim), dtype, data=Keys.data)
        Partial = T.alloc_buffer((2, heads, 2 * chunk_blocks, m), "float32")
        with (
            T.launch_thread("blockIdx.x", 2 * chunk_blocks) as number,
            T.launch_thread("blockIdx.y", T.ceildiv(m, tile.rows)) as row_tile,
            T.launch_thread("blockIdx.z", heads) as head,
            T.launch_thread("threadIdx.x", tile.threads) as tx,
        ):
            place = T.meta_var((layer, number, row_tile, head, m, tx))
            sum_up(Queries, Slots, Position, Rings, Partial, Weights, *place)
        with (
            T.launch_thread("blockIdx.x", 2 * chunk_blocks) as number,
            T.launch_thread("blockIdx.y", T.ceildiv(m, tile.rows)) as row_tile,
            T.launch_thread("blockIdx.z", heads) as head,
            T.launch_thread("threadIdx.x", tile.threads) as tx,
        ):
            place = T.meta_var((layer, number, row_tile, head, m, tx))
            write(Queries, Slots, Position, Rings, Partial, Weights, *place)

    return attention_weights


@functools.cache
def attention(
    heads: int,
    z_head: int,
    v_head: int,
    model_dim: int,
    chunk: int,
    layers: int,
    dtype: str,
    unit: GpuUnit,
):
    """gated [m, E] = silu(r) * (weights @ values) + features @ memory.

    r is columns S to S+E of ``projected`` plus ``bias`` [P], features are queries[2], memory is
    [H, zh, vh].
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    tile = _tile(unit, dtype, z_head, v_head, chunk, right_by_depth=True)
    vector = vector_width(dtype, tile.width, v_head, z_dim, columns)
    chunk_steps = -(-chunk // tile.depth)
    run_sums = tile.width * tile.runs_of_row
    thread_rows = tile.accumulators // run_sums

    def within(k, extent: int, size: int):
        return k < extent if extent % size else None

    def weight(operands, row, step, k):
        rows, weights, _, _ = operands
        own, first = rows.half(step, tile.depth)
        base = T.Select(own, rows.own_row, chunk - rows.own_row)
        exists = within(first + k, chunk, tile.depth)
        return weights, [rows.head, rows.existing(row), base + first + k], exists

    def value(operands, column, step, k):
        rows, _, values, column0 = operands
        own, first = rows.half(step, tile.depth)
        base = T.Select(own, rows.own_row, chunk - rows.own_row)
        # A row of the ring that is yet to come holds anything: the last one stands for it, which
        # then has no weight.
        last = T.Select(own, rows.start + rows.m, chunk) - 1
        ring_row = base + T.min(first + k, last)
        indices = [rows.layer, rows.slot, ring_row, rows.head * v_head + column0 + column]
        return values, indices, within(column0 + column, v_head, tile.columns)

    def feature(operands, row, step, k):
        rows = operands[0]
        depth = step * tile.depth + k
        exists = within(depth, z_head, tile.depth)
        return rows.queries, [2, rows.existing(row), rows.head * z_head + depth], exists

    def memory_value(operands, column, step, k):
        rows, memory, column0 = operands
        depth = step * tile.depth + k
        exists = both(
            within(depth, z_head, tile.depth), within(column0 + column, v_head, tile.columns)
        )
        return memory, [rows.head, depth, column0 + column], exists

    attend = tile.product(weight, value)
    read_memory = tile.product(feature, memory_value)

    @T.inline
    def gate(rows, projected, bias, column0, sums, tx):
        raw = T.alloc_local((vector,), dtype)
        shift = T.alloc_local((vector,), "float32")
        # A column's bias serves all rows.
        for part in T.unroll(run_sums // vector):
            inner = T.meta_var(part * vector % tile.width)
            column: T.int32 = column0 + tile.column(tx, part * vector // tile.width) + inner
            channel: T.int32 = z_dim + rows.head * v_head + T.min(column, v_head - vector)
            for j in T.vectorized(vector):
                shift[j] = bias[channel + j]
            for i in T.unroll(thread_rows):
                row = T.meta_var(rows.row0 + tile.row(tx, i * tile.runs_of_row))
                for j in T.vectorized(vector):
                    raw[j] = projected[T.min(row, rows.m - 1), channel + j]
                for j in T.unroll(vector):
                    index = T.meta_var(i * run_sums + part * vector + j)
                    r: T.let = T.Cast("float32", raw[j]) + shift[j]
                    sums[index] = sums[index] * silu(r)

    @T.inline
    def write(rows, gated, column0, sums, tx):
        rounded = T.alloc_local((vector,), dtype)
        for run in T.unroll(tile.accumulators // tile.width):
            row: T.let = rows.row0 + tile.row(tx, run)
            for part in T.unroll(tile.width // vector):
                column: T.let = column0 + tile.column(tx, run) + part * vector
                for j in T.unroll(vector):
                    rounded[j] = T.Cast(dtype, sums[run * tile.width + part * vector + j])
                if row < rows.m and column < v_head:
                    for j in T.vectorized(vector):
                        gated[row, rows.head * v_head + column + j] = rounded[j]

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
        # One head after the other, so that its values stay in the cache; the rows that see the most
        # keys begin first.
        column_tile, order, head = T.cta_id(
            [T.ceildiv(v_head, tile.columns), T.ceildiv(m, tile.rows), heads]
        )
        tx = T.thread_id([tile.threads])
        arena = tile.arena()
        shared = tile.shared(arena)
        sums = T.alloc_local((tile.accumulators,), "float32")
        slot: T.int32 = Slots[0]
        start: T.int32 = Position[slot] % chunk
        own_row: T.int32 = Position[slot] % (2 * chunk) - start
        previous: T.int32 = T.Select(Position[slot] >= chunk, chunk_steps, 0)
        row0: T.int32 = (T.ceildiv(m, tile.rows) - 1 - order) * tile.rows
        column0: T.int32 = column_tile * tile.columns
        rows = T.meta_var(_Rows(Queries, layer, slot, head, row0, m, start, own_row, previous))
        steps: T.int32 = previous + T.ceildiv(rows.seen(tile.rows, chunk), tile.depth)
        for i in T.unroll(tile.accumulators):
            sums[i] = f32(0.0)
        attend((rows, Weights, Values, column0), shared, sums, steps, tx)
        gate(rows, Projected, Bias, column0, sums, tx)
        read_memory((rows, Memory, column0), shared, sums, -(-z_head // tile.depth), tx)
        write(rows, Gated, column0, sums, tx)

    return attention
