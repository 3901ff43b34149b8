"""Sliding chunk attention, the memory read and the gate: gated = attention * r + memory.

A query at index i of chunk c attends to all of chunk c-1 and to indices 0..i of its own chunk, by
plain softmax; to that, gated by r, comes softmax_features(aq) @ M from the adaptive working memory
(zero until chunk 2). Keys count from 0 at the start of chunk c-1 (of chunk 0 while there is no
previous one); key k stands in ring row (base + k) mod 2C.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .register_tile import panel_store, row_tiles
from .vector_math import exp, f32, largest, total
from .vector_unit import VectorUnit

_QUERY_TILES = 4


def _softmax(width: int):
    """An inline: weights[row, 0:count] becomes its softmax, a partial sum per lane."""

    @T.inline
    def softmax(Weights, row, count):
        whole = count // width
        lanes = T.alloc_buffer((width,), "float32")
        scalar = T.alloc_buffer((1,), "float32")
        for j in T.vectorized(width):
            lanes[j] = Weights[row, 0]
        for i in T.serial(whole):
            for j in T.vectorized(width):
                lanes[j] = T.max(lanes[j], Weights[row, i * width + j])
        scalar[0] = largest([lanes[j] for j in range(width)])
        for k in T.serial(count - whole * width):
            scalar[0] = T.max(scalar[0], Weights[row, whole * width + k])
        for j in T.vectorized(width):
            lanes[j] = f32(0.0)
        for i in T.serial(whole):
            for j in T.vectorized(width):
                Weights[row, i * width + j] = exp(Weights[row, i * width + j] - scalar[0])
            for j in T.vectorized(width):
                lanes[j] = lanes[j] + Weights[row, i * width + j]
        for k in T.serial(count - whole * width):
            Weights[row, whole * width + k] = exp(Weights[row, whole * width + k] - scalar[0])
            lanes[0] = lanes[0] + Weights[row, whole * width + k]
        scalar[0] = f32(1.0) / total([lanes[j] for j in range(width)])
        for i in T.serial(whole):
            for j in T.vectorized(width):
                Weights[row, i * width + j] = Weights[row, i * width + j] * scalar[0]
        for k in T.serial(count - whole * width):
            Weights[row, whole * width + k] = Weights[row, whole * width + k] * scalar[0]

    return softmax


@functools.cache
def attention_prefill(
    heads: int,
    z_head: int,
    v_head: int,
    model_dim: int,
    chunk: int,
    layers: int,
    ring_dtype: str,
    unit: VectorUnit,
):
    """m consecutive queries of one chunk: queries [m, 3, S] to gated [m, E].

    Keys are first transposed into panels, once for all queries. A block of ``rows`` x 4 queries
    then keeps its scores, softmaxes them, and multiplies them with the values in the ring.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    block = unit.rows * _QUERY_TILES
    key_panels = -(-chunk // unit.panel)
    narrow = unit.narrowed(v_head)
    value_panels = -(-v_head // narrow.panel)
    cut = v_head % narrow.panel != 0
    softmax = _softmax(unit.lanes)

    # Scores of one panel of keys; operands (head, half, panel, queries, packed keys, weights,
    # first query, first column of the panel).
    def query(operands, row, k):
        head, half, _, queries, _, _, first, _ = operands
        return queries[first + row, 1 - half, head * z_head + k]

    def key(operands, k, column):
        head, half, panel, _, packed, _, _, _ = operands
        return packed[head, half, panel, k, column]

    @T.inline
    def store_scores(operands, acc0, acc1, r, row):
        weights = operands[5]
        for j in T.vectorized(unit.lanes):
            weights[row, operands[7] + j] = acc0[r, j]
        for j in T.vectorized(unit.lanes):
            weights[row, operands[7] + unit.lanes + j] = acc1[r, j]

    score_rows = row_tiles(unit, query, key, store_scores)

    def within(column):
        return T.min(column, v_head - 1) if cut else column

    # Attention over values; operands (panel, head, weights, ring, layer, slot, base, gated,
    # projected, first query).
    def weight(operands, row, k):
        return operands[2][row, k]

    def value(operands, k, column):
        panel, head, _, ring, layer, slot, base, _, _, _ = operands
        ring_row = (base + k) % (2 * chunk)
        return T.Cast(
            "float32",
            ring[layer, slot, ring_row, head * v_head + within(panel * narrow.panel + column)],
        )

    @T.inline
    def write_gated(operands, row, column, attended):
        gated = operands[7]
        gate = operands[8]
        gated[operands[9] + row, operands[1] * v_head + column] = (
            attended * gate[operands[9] + row, z_dim + operands[1] * v_head + column]
        )

    value_rows = row_tiles(narrow, weight, value, panel_store(v_head, narrow, write_gated))

    # Memory read; operands (panel, head, queries, memory, layer, slot, gated, first query).
    def feature(operands, row, k):
        return operands[2][operands[7] + row, 2, operands[1] * z_head + k]

    def memory_value(operands, k, column):
        panel, head, _, memory, layer, slot, _, _ = operands
        return memory[layer, slot, head, k, within(panel * narrow.panel + column)]

    @T.inline
    def add_memory(operands, row, column, read):
        gated = operands[6]
        gated[operands[7] + row, operands[1] * v_head + column] = (
            gated[operands[7] + row, operands[1] * v_head + column] + read
        )

    memory_rows = row_tiles(narrow, feature, memory_value, panel_store(v_head, narrow, add_memory))

    @T.inline
    def pack_keys(Keys, Packed, layer, slot, head, half, panel, count):
        """Panel of transposed keys; ``half`` 0 is the previous chunk, 1 the current one."""
        for k in T.serial(unit.panel):
            if panel * unit.panel + k < count[0]:
                for d in T.serial(z_head):
                    Packed[head, half, panel, d, k] = T.Cast(
                        "float32",
                        Keys[
                            layer,
                            slot,
                            (count[1] + panel * unit.panel + k) % (2 * chunk),
                            head * z_head + d,
                        ],
                    )
            else:
                for d in T.serial(z_head):
                    Packed[head, half, panel, d, k] = f32(0.0)

    @T.prim_func(s_tir=True, private=True)
    def attention_prefill(
        queries: T.handle,
        projected: T.handle,
        slots: T.handle,
        position: T.handle,
        keys: T.handle,
        values: T.handle,
        memory: T.handle,
        layer: T.int64,
        gated: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        Queries = T.match_buffer(queries, (m, 3, z_dim), "float32")
        Projected = T.match_buffer(projected, (m, columns), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(keys, (layers, num_slots, 2 * chunk, z_dim), ring_dtype)
        Values = T.match_buffer(values, (layers, num_slots, 2 * chunk, value_dim), ring_dtype)
        Memory = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        Gated = T.match_buffer(gated, (m, value_dim), "float32")
        Packed = T.alloc_buffer((heads, 2, key_panels, z_head, unit.panel), "float32")
        slot = Slots[0]
        start = Position[slot] % chunk
        previous = T.Select(Position[slot] >= chunk, chunk, 0)
        own_base = Position[slot] - start
        for item in T.parallel(heads * 2 * key_panels):
            half = item // key_panels % 2
            pack_keys(
                Keys,
                Packed,
                layer,
                slot,
                item // (2 * key_panels),
                half,
                item % key_panels,
                (
                    T.Select(half == 0, previous, start + m),
                    T.Select(half == 0, own_base + chunk, own_base),
                ),
            )
        blocks = (m + block - 1) // block
        for item in T.parallel(heads * blocks):
            head = item // blocks
            first = item % blocks * block
            count = T.min(block, m - first)
            own = start + first + count
            Weights = T.alloc_buffer((block, 2 * chunk + unit.panel), "float32")
            for panel in T.serial((previous + unit.panel - 1) // unit.panel):
                score_rows(
                    (head, 0, panel, Queries, Packed, Weights, first, panel * unit.panel),
                    0,
                    count,
                    z_head,
                )
            for panel in T.serial((own + unit.panel - 1) // unit.panel):
                score_rows(
                    (
                        head,
                        1,
                        panel,
                        Queries,
                        Packed,
                        Weights,
                        first,
                        previous + panel * unit.panel,
                    ),
                    0,
                    count,
                    z_head,
                )
            for row in T.serial(count):
                visible = previous + start + first + row + 1
                softmax(Weights, row, visible)
                for k in T.serial(previous + own - visible):
                    Weights[row, visible + k] = f32(0.0)
            for panel in T.serial(value_panels):
                value_rows(
                    (
                        panel,
                        head,
                        Weights,
                        Values,
                        layer,
                        slot,
                        own_base + 2 * chunk - previous,
                        Gated,
                        Projected,
                        first,
                    ),
                    0,
                    count,
                    previous + own,
                )
                memory_rows(
                    (panel, head, Queries, Memory, layer, slot, Gated, first), 0, count, z_head
                )

    return attention_prefill


@functools.cache
def attention_decode(
    heads: int,
    z_head: int,
    v_head: int,
    model_dim: int,
    chunk: int,
    layers: int,
    ring_dtype: str,
    unit: VectorUnit,
):
    """One query of each of B slots: queries [B, 3, S] to gated [B, E], a head at a time.

    Keys and values are read once, row after row as they lie in the ring.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    z_width, v_width = unit.fit(z_head), unit.fit(v_head)
    softmax = _softmax(unit.lanes)

    @T.inline
    def score(Queries, Keys, Weights, layer, slot, b, head, which, ring_row, k):
        lanes = T.alloc_buffer((z_width,), "float32")
        for j in T.vectorized(z_width):
            lanes[j] = f32(0.0)
        for i in T.serial(z_head // z_width):
            for j in T.vectorized(z_width):
                lanes[j] = lanes[j] + Queries[b, which, head * z_head + i * z_width + j] * T.Cast(
                    "float32", Keys[layer, slot, ring_row, head * z_head + i * z_width + j]
                )
        Weights[0, k] = total([lanes[j] for j in range(z_width)])

    @T.prim_func(s_tir=True, private=True)
    def attention_decode(
        queries: T.handle,
        projected: T.handle,
        slots: T.handle,
        position: T.handle,
        keys: T.handle,
        values: T.handle,
        memory: T.handle,
        layer: T.int64,
        gated: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        num_slots = T.int64()
        Queries = T.match_buffer(queries, (batch, 3, z_dim), "float32")
        Projected = T.match_buffer(projected, (batch, columns), "float32")
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(keys, (layers, num_slots, 2 * chunk, z_dim), ring_dtype)
        Values = T.match_buffer(values, (layers, num_slots, 2 * chunk, value_dim), ring_dtype)
        Memory = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        Gated = T.match_buffer(gated, (batch, value_dim), "float32")
        for item in T.parallel(batch * heads):
            b = item // heads
            head = item % heads
            slot = Slots[b]
            start = Position[slot] % chunk
            previous = T.Select(Position[slot] >= chunk, chunk, 0)
            own_row = Position[slot] % (2 * chunk) - start
            Weights = T.alloc_buffer((1, 2 * chunk), "float32")
            attended = T.alloc_buffer((v_head,), "float32")
            for k in T.serial(previous):
                score(Queries, Keys, Weights, layer, slot, b, head, 1, chunk - own_row + k, k)
            for k in T.serial(start + 1):
                score(Queries, Keys, Weights, layer, slot, b, head, 0, own_row + k, previous + k)
            softmax(Weights, 0, previous + start + 1)
            for i in T.serial(v_head // v_width):
                for j in T.vectorized(v_width):
                    attended[i * v_width + j] = f32(0.0)
            for k in T.serial(previous):
                for i in T.serial(v_head // v_width):
                    for j in T.vectorized(v_width):
                        attended[i * v_width + j] = attended[i * v_width + j] + Weights[
                            0, k
                        ] * T.Cast(
                            "float32",
                            Values[
                                layer, slot, chunk - own_row + k, head * v_head + i * v_width + j
                            ],
                        )
            for k in T.serial(start + 1):
                for i in T.serial(v_head // v_width):
                    for j in T.vectorized(v_width):
                        attended[i * v_width + j] = attended[i * v_width + j] + Weights[
                            0, previous + k
                        ] * T.Cast(
                            "float32",
                            Values[layer, slot, own_row + k, head * v_head + i * v_width + j],
                        )
            for i in T.serial(v_head // v_width):
                for j in T.vectorized(v_width):
                    attended[i * v_width + j] = (
                        attended[i * v_width + j]
                        * Projected[b, z_dim + head * v_head + i * v_width + j]
                    )
            for d in T.serial(z_head):
                for i in T.serial(v_head // v_width):
                    for j in T.vectorized(v_width):
                        attended[i * v_width + j] = (
                            attended[i * v_width + j]
                            + Queries[b, 2, head * z_head + d]
                            * Memory[layer, slot, head, d, i * v_width + j]
                        )
            for i in T.serial(v_head // v_width):
                for j in T.vectorized(v_width):
                    Gated[b, head * v_head + i * v_width + j] = attended[i * v_width + j]

    return attention_decode
