"""Attention of one query of each of several sequences, for the CPU."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import exp, f32, largest, total
from ..vector_unit import VectorUnit


@functools.cache
def attention_decode(
    heads: int,
    z_head: int,
    v_head: int,
    model_dim: int,
    chunk: int,
    layers: int,
    ring_dtype: str,
    splits: int,
    unit: VectorUnit,
):
    """One query of each of B slots: queries [B, 3, S] to gated [B, E].

    A task is a head's share of the keys; there are B x H x ``splits``, so that few heads keep many
    cores busy. It leaves its largest score, its sum of exponentials and its weighted values; with
    several splits a second pass joins them.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    z_width, v_width = unit.fit(z_head), unit.fit(v_head)

    @T.inline
    def score(Queries, Keys, Scores, layer, slot, b, head, which, ring_row, k):
        lanes = T.alloc_buffer((z_width,), "float32")
        for j in T.vectorized(z_width):
            lanes[j] = f32(0.0)
        for i in T.serial(z_head // z_width):
            for j in T.vectorized(z_width):
                lanes[j] = lanes[j] + Queries[b, which, head * z_head + i * z_width + j] * T.Cast(
                    "float32", Keys[layer, slot, ring_row, head * z_head + i * z_width + j]
                )
        Scores[k] = total([lanes[j] for j in range(z_width)])

    @T.inline
    def exponentials(Scores, Largest, Sums, b, task, count):
        """scores become exp(score - largest); the last vector is filled up with nothing."""
        vectors = (count + unit.lanes - 1) // unit.lanes
        lanes = T.alloc_buffer((unit.lanes,), "float32")
        scalar = T.alloc_buffer((1,), "float32")
        for j in T.vectorized(unit.lanes):
            Scores[count + j] = T.min_value("float32")
        for j in T.vectorized(unit.lanes):
            lanes[j] = Scores[j]
        for i in T.serial(vectors):
            for j in T.vectorized(unit.lanes):
                lanes[j] = T.max(lanes[j], Scores[i * unit.lanes + j])
        scalar[0] = largest([lanes[j] for j in range(unit.lanes)])
        for j in T.vectorized(unit.lanes):
            lanes[j] = f32(0.0)
        for i in T.serial(vectors):
            for j in T.vectorized(unit.lanes):
                Scores[i * unit.lanes + j] = exp(Scores[i * unit.lanes + j] - scalar[0])
            for j in T.vectorized(unit.lanes):
                lanes[j] = lanes[j] + Scores[i * unit.lanes + j]
        Largest[b, task] = scalar[0]
        Sums[b, task] = total([lanes[j] for j in range(unit.lanes)])

    @T.inline
    def add_values(Values, Scores, Partial, b, task, layer, slot, ring_row, k):
        for i in T.serial(v_head // v_width):
            for j in T.vectorized(v_width):
                Partial[b, task, i * v_width + j] = Partial[b, task, i * v_width + j] + Scores[
                    k
                ] * T.Cast(
                    "float32",
                    Values[layer, slot, ring_row, task // splits * v_head + i * v_width + j],
                )

    @T.inline
    def attend(Queries, Keys, Values, Position, Largest, Sums, Partial, layer, slot, b, task):
        head = task // splits
        start = Position[slot] % chunk
        previous = T.Select(Position[slot] >= chunk, chunk, 0)
        own_row = Position[slot] % (2 * chunk) - start
        share = (previous + start + splits) // splits
        first = task % splits * share
        count = T.min(share, previous + start + 1 - first)
        ahead = T.max(T.min(previous - first, count), 0)
        own_first = own_row + T.max(first - previous, 0)
        Scores = T.alloc_buffer((2 * chunk + unit.lanes,), "float32")
        for k in T.serial(ahead):
            score(Queries, Keys, Scores, layer, slot, b, head, 1, chunk - own_row + first + k, k)
        for k in T.serial(count - ahead):
            score(Queries, Keys, Scores, layer, slot, b, head, 0, own_first + k, ahead + k)
        for i in T.serial(v_head // v_width):
            for j in T.vectorized(v_width):
                Partial[b, task, i * v_width + j] = f32(0.0)
        if count > 0:
            exponentials(Scores, Largest, Sums, b, task, count)
            for k in T.serial(ahead):
                add_values(
                    Values, Scores, Partial, b, task, layer, slot, chunk - own_row + first + k, k
                )
            for k in T.serial(count - ahead):
                add_values(Values, Scores, Partial, b, task, layer, slot, own_first + k, ahead + k)
        else:
            Largest[b, task] = T.min_value("float32")
            Sums[b, task] = f32(0.0)

    @T.inline
    def finish(buffers, layer, slot, b, head):
        """Joins a head's splits, applies the gate and adds what the memory holds."""
        Queries, Projected, Position, Memory, Gated, Largest, Sums, Partial = buffers
        scalar = T.alloc_buffer((2,), "float32")
        scale = T.alloc_buffer((splits,), "float32")
        scalar[0] = largest([Largest[b, head * splits + i] for i in range(splits)])
        for i in T.unroll(splits):
            scale[i] = exp(Largest[b, head * splits + i] - scalar[0])
        scalar[1] = total([scale[i] * Sums[b, head * splits + i] for i in range(splits)])
        for i in T.serial(v_head // v_width):
            for j in T.vectorized(v_width):
                Gated[b, head * v_head + i * v_width + j] = (
                    total(
                        [
                            scale[n] * Partial[b, head * splits + n, i * v_width + j]
                            for n in range(splits)
                        ]
                    )
                    / scalar[1]
                    * Projected[b, z_dim + head * v_head + i * v_width + j]
                )
        # Nothing is kept before the third chunk.
        if Position[slot] >= 2 * chunk:
            for d in T.serial(z_head):
                for i in T.serial(v_head // v_width):
                    for j in T.vectorized(v_width):
                        Gated[b, head * v_head + i * v_width + j] = (
                            Gated[b, head * v_head + i * v_width + j]
                            + Queries[b, 2, head * z_head + d]
                            * Memory[layer, slot, head, d, i * v_width + j]
                        )

    @T.inline
    def finish_heads(buffers, layer, Slots, batch):
        for item in T.parallel(batch * heads):
            finish(buffers, layer, Slots[item // heads], item // heads, item % heads)

    @T.inline
    def nothing(buffers, layer, slots, *_where):
        T.evaluate(0)

    # A head in one piece is finished where it was attended to, while its sums are in the cache.
    end_of_task = finish if splits == 1 else nothing
    join_splits = nothing if splits == 1 else finish_heads

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
        Largest = T.alloc_buffer((batch, heads * splits), "float32")
        Sums = T.alloc_buffer((batch, heads * splits), "float32")
        Partial = T.alloc_buffer((batch, heads * splits, v_head), "float32")
        # No names for the parts of item: a buffer indexed by a bound name is not compacted rightly.
        for item in T.parallel(batch * heads * splits):
            attend(
                Queries,
                Keys,
                Values,
                Position,
                Largest,
                Sums,
                Partial,
                layer,
                Slots[item // (heads * splits)],
                item // (heads * splits),
                item % (heads * splits),
            )
            end_of_task(
                (Queries, Projected, Position, Memory, Gated, Largest, Sums, Partial),
                layer,
                Slots[item // (heads * splits)],
                item // (heads * splits),
                item % (heads * splits),
            )
        join_splits(
            (Queries, Projected, Position, Memory, Gated, Largest, Sums, Partial),
            layer,
            Slots,
            batch,
        )

    return attention_decode
