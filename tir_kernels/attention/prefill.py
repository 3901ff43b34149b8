"""Attention of many consecutive queries of one sequence, for the CPU."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..register_tile import panel_store, row_tiles
from ..softmax import row_softmax
from ..vector_math import f32
from ..vector_unit import VectorUnit

# Query rows of a block, in register tiles: what one packed panel of values serves.
_QUERY_TILES = 8


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

    Keys are first transposed into panels, once for all queries. A block of queries then keeps its
    scores, softmaxes them, and multiplies them with the values, packed a panel at a time.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    block = unit.rows * _QUERY_TILES
    key_panels = -(-chunk // unit.panel)
    narrow = unit.narrowed(v_head)
    value_panels = -(-v_head // narrow.panel)
    cut = v_head % narrow.panel != 0
    softmax = row_softmax(unit.lanes)

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

    # Attention over a packed panel of values; operands (panel, head, weights, packed values, gated,
    # projected, first query).
    def weight(operands, row, k):
        return operands[2][row, k]

    def value(operands, k, column):
        return operands[3][k, column]

    @T.inline
    def write_gated(operands, row, column, attended):
        gated = operands[4]
        gate = operands[5]
        gated[operands[6] + row, operands[1] * v_head + column] = (
            attended * gate[operands[6] + row, z_dim + operands[1] * v_head + column]
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
    def pack_values(Values, Panel, layer, slot, ring_row, head, panel, k):
        """One key's values of a panel, side by side: in the ring they are a page apart."""
        for i in T.serial(2):
            for j in T.vectorized(narrow.lanes):
                Panel[k, i * narrow.lanes + j] = T.Cast(
                    "float32",
                    Values[
                        layer,
                        slot,
                        ring_row,
                        head * v_head + within(panel * narrow.panel + i * narrow.lanes + j),
                    ],
                )

    @T.inline
    def pack_keys(Keys, Packed, layer, slot, head, half, panel, rows):
        """Transposed keys of a panel; ``half`` 0 is the previous chunk, 1 the current one.

        ``rows`` are how many keys the half has and its first ring row.
        """
        for k in T.serial(unit.panel):
            if panel * unit.panel + k < rows[0]:
                for d in T.serial(z_head):
                    Packed[head, half, panel, d, k] = T.Cast(
                        "float32",
                        Keys[
                            layer,
                            slot,
                            rows[1] + panel * unit.panel + k,
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
        own_row = Position[slot] % (2 * chunk) - start
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
                    T.Select(half == 0, chunk - own_row, own_row),
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
            Panel = T.alloc_buffer((2 * chunk, narrow.panel), "float32")
            for panel in T.serial(value_panels):
                for k in T.serial(previous):
                    pack_values(Values, Panel, layer, slot, chunk - own_row + k, head, panel, k)
                for k in T.serial(own):
                    pack_values(Values, Panel, layer, slot, own_row + k, head, panel, previous + k)
                value_rows(
                    (panel, head, Weights, Panel, Gated, Projected, first),
                    0,
                    count,
                    previous + own,
                )
                if Position[slot] >= 2 * chunk:
                    memory_rows(
                        (panel, head, Queries, Memory, layer, slot, Gated, first), 0, count, z_head
                    )

    return attention_prefill
