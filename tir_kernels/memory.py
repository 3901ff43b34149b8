"""Adaptive working memory: what is kept of chunk c-1 after the last token of chunk c.

With ak and v of chunk c-1, per head: l = logsumexp over positions of ak, n' = logaddexp(n, l),
U = softmax_positions(ak)^T @ (v - softmax_features(ak) @ M), M' = M + exp(l - n') * (U - M).
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .register_tile import panel_store, row_tiles
from .softmax import row_softmax
from .vector_math import exp, f32
from .vector_unit import VectorUnit


@functools.cache
def memory_commit(
    heads: int,
    z_head: int,
    v_head: int,
    chunk: int,
    layers: int,
    ring_dtype: str,
    unit: VectorUnit,
):
    """Updates memory [layers, slots, H, zh, vh] and log_norm [.., zh] of B slots, in place.

    Each slot's position must stand at the end of a chunk c >= 1, all its tokens counted.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    width = unit.fit(z_head)
    softmax = row_softmax(width)
    narrow = unit.narrowed(v_head)
    panels = -(-v_head // narrow.panel)
    cut = v_head % narrow.panel != 0

    def within(column):
        return T.min(column, v_head - 1) if cut else column

    # Residual values v - features @ M; operands (panel, features, memory, values, residual,
    # layer, slot, head, first ring row).
    def feature(operands, row, k):
        return operands[1][row, k]

    def stored(operands, k, column):
        panel, _, memory, _, _, layer, slot, head, _ = operands
        return memory[layer, slot, head, k, within(panel * narrow.panel + column)]

    @T.inline
    def write_residual(operands, row, column, predicted):
        values = operands[3]
        residual = operands[4]
        residual[row, column] = (
            T.Cast(
                "float32",
                values[operands[5], operands[6], operands[8] + row, operands[7] * v_head + column],
            )
            - predicted
        )

    residual_rows = row_tiles(narrow, feature, stored, panel_store(v_head, narrow, write_residual))

    # U and M'; operands (panel, weights, residual, memory, ratio, layer, slot, head).
    def weight(operands, row, k):
        return operands[1][k, row]

    def residual_value(operands, k, column):
        return operands[2][k, within(operands[0] * narrow.panel + column)]

    @T.inline
    def write_memory(operands, row, column, update):
        memory = operands[3]
        ratio = operands[4]
        memory[operands[5], operands[6], operands[7], row, column] = memory[
            operands[5], operands[6], operands[7], row, column
        ] + ratio[row] * (update - memory[operands[5], operands[6], operands[7], row, column])

    update_rows = row_tiles(
        narrow, weight, residual_value, panel_store(v_head, narrow, write_memory)
    )

    @T.inline
    def softmax_features(Keys, Features, layer, slot, head, ring_row, t):
        for i in T.serial(z_head // width):
            for j in T.vectorized(width):
                Features[t, i * width + j] = T.Cast(
                    "float32", Keys[layer, slot, ring_row + t, head * z_head + i * width + j]
                )
        softmax(Features, t, z_head)

    @T.inline
    def softmax_positions(Keys, LogNorm, Weights, Ratio, layer, slot, head, ring_row, i):
        """A vector of features: softmax over positions, and the log-normaliser's update."""
        highest = T.alloc_buffer((width,), "float32")
        sums = T.alloc_buffer((width,), "float32")
        for j in T.vectorized(width):
            highest[j] = T.Cast(
                "float32", Keys[layer, slot, ring_row, head * z_head + i * width + j]
            )
        for t in T.serial(chunk):
            for j in T.vectorized(width):
                highest[j] = T.max(
                    highest[j],
                    T.Cast(
                        "float32", Keys[layer, slot, ring_row + t, head * z_head + i * width + j]
                    ),
                )
        for j in T.vectorized(width):
            sums[j] = f32(0.0)
        for t in T.serial(chunk):
            for j in T.vectorized(width):
                Weights[t, i * width + j] = exp(
                    T.Cast(
                        "float32", Keys[layer, slot, ring_row + t, head * z_head + i * width + j]
                    )
                    - highest[j]
                )
            for j in T.vectorized(width):
                sums[j] = sums[j] + Weights[t, i * width + j]
        for t in T.serial(chunk):
            for j in T.vectorized(width):
                Weights[t, i * width + j] = Weights[t, i * width + j] / sums[j]
        for j in T.serial(width):
            level = T.alloc_buffer((3,), "float32")
            level[0] = highest[j] + T.log(sums[j])
            level[1] = LogNorm[layer, slot, head, i * width + j]
            level[2] = T.max(level[0], level[1])
            LogNorm[layer, slot, head, i * width + j] = level[2] + T.log(
                T.exp(level[0] - level[2]) + T.exp(level[1] - level[2])
            )
            Ratio[i * width + j] = T.exp(level[0] - LogNorm[layer, slot, head, i * width + j])

    @T.prim_func(s_tir=True, private=True)
    def memory_commit(
        slots: T.handle,
        position: T.handle,
        memory_keys: T.handle,
        values: T.handle,
        memory: T.handle,
        log_norm: T.handle,
        layer: T.int64,
    ):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(memory_keys, (layers, num_slots, 2 * chunk, z_dim), ring_dtype)
        Values = T.match_buffer(values, (layers, num_slots, 2 * chunk, value_dim), ring_dtype)
        Memory = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        LogNorm = T.match_buffer(log_norm, (layers, num_slots, heads, z_head), "float32")
        for item in T.parallel(batch * heads):
            slot = Slots[item // heads]
            head = item % heads
            # The position is the next chunk's first: chunk c-1 has the half that it will fill.
            ring_row = Position[slot] % (2 * chunk)
            Features = T.alloc_buffer((chunk, z_head), "float32")
            Weights = T.alloc_buffer((chunk, z_head), "float32")
            Residual = T.alloc_buffer((chunk, v_head), "float32")
            Ratio = T.alloc_buffer((z_head,), "float32")
            for t in T.serial(chunk):
                softmax_features(Keys, Features, layer, slot, head, ring_row, t)
            for i in T.serial(z_head // width):
                softmax_positions(Keys, LogNorm, Weights, Ratio, layer, slot, head, ring_row, i)
            for panel in T.serial(panels):
                residual_rows(
                    (panel, Features, Memory, Values, Residual, layer, slot, head, ring_row),
                    0,
                    chunk,
                    z_head,
                )
                update_rows(
                    (panel, Weights, Residual, Memory, Ratio, layer, slot, head),
                    0,
                    z_head,
                    chunk,
                )

    return memory_commit
