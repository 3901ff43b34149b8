"""Attention of one query of each of several sequences, the keys of a head split over CTAs.

A head's work is its visible keys with their values, then the rows of its memory; CTAs get equal
shares of these bytes. Each makes its query from z itself; the one that has the newest key writes
it, its value and its memory key into the rings. A second kernel joins the shares.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ...vector_math import f32, largest, total
from ..dependent_launch import DependentLaunch
from ..head_lanes import HeadTransform, head_lanes
from ..reduce import WARP, by_warps, cta_reduce, warp_reduce
from ..unit import GpuUnit
from ..vectors import Vectors, vector_width
from ..weighted_rows import WeightedRows
from .shares import MEMORY, NOTHING, Shares

_THREADS = 256
# Sequences from which on the CTAs begin together, after the kernel before: as they drift apart, the
# heads of a sequence no longer read neighbouring bytes at a time, and memory is a sixth slower.
_TOGETHER = 32


@functools.cache
def attention_step(
    batch: int,
    heads: int,
    z_head: int,
    v_head: int,
    rope_heads: int,
    model_dim: int,
    chunk: int,
    eps: float,
    layers: int,
    dtype: str,
    unit: GpuUnit,
):
    """Each row's shares of attention and of the memory read; k, ak and v into the rings.

    ``projected`` [B, S+E+D] holds z in its first S columns, v [B, E] is done. R being
    ``Shares.rows``, ``scale`` [B, H, R, 2] says what a row of ``partial`` [B, H, R, vh]
    is: (largest score, sum of exponentials) of weighted values, (0, -1) of what the memory gives,
    or (0, 0) where there is nothing. On dependent launches see ``DependentLaunch``; rings and
    positions must not have been written since the last plain one.
    """
    shares = Shares(batch, heads, z_head, v_head, chunk, dtype, unit)
    splits = shares.splits
    threads = unit.cta(_THREADS)
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    angles = 2 * ((z_head + 1) // 2)
    launch = DependentLaunch(unit.dependent_launch and batch < _TOGETHER)
    layout = head_lanes(z_head, dtype)
    lanes, held, slices, width = layout.lanes, layout.held, layout.slices, layout.width
    transform = HeadTransform(layout, heads, rope_heads, eps)
    z_access = vector_width("float32", width, columns)
    z_vectors = Vectors(z_access, "float32")
    add_lane = warp_reduce(total, lanes)
    together = threads // lanes  # keys that the CTA takes at once
    ahead = min(shares.ahead, -(-shares.max_keys // together))
    add_lanes = warp_reduce(total, lanes, ahead)
    cta_largest, cta_total = cta_reduce(largest, threads), cta_reduce(total, threads)

    def value(operands, row, column):
        Values, layer, slot, head, start, first, count = operands
        key = first + T.max(T.min(row, count - 1), 0)
        return Values, [layer, slot, shares.ring_row(start, key), head * v_head + column]

    def kept(operands, row, column):
        Memory, layer, slot, head, first, count = operands
        return Memory, [layer, slot, head, first + T.max(T.min(row, count - 1), 0), column]

    values = WeightedRows(v_head, dtype, threads, shares.ahead, shares.max_keys, value)
    memory_rows = WeightedRows(v_head, "float32", threads, shares.ahead, shares.max_rows, kept)
    value_vectors = Vectors(values.width, "float32")
    scores_size = -(-shares.max_keys // values.step) * values.step
    features_size = -(-shares.max_rows // memory_rows.step) * memory_rows.step

    @T.inline
    def load_key(Keys, KRing, u, layer, slot, head, start, key, last, tx):
        for s in T.unroll(slices):
            for j in T.vectorized(width):
                KRing[u * held + s * width + j] = Keys[
                    layer,
                    slot,
                    shares.ring_row(start, T.max(T.min(key, last), 0)),
                    head * z_head + layout.first(tx, s) + j,
                ]

    @T.inline
    def load_z(Projected, Z, b, head, tx):
        for s in T.unroll(slices):
            for i in T.unroll(width // z_access):
                z_vectors.load_row(
                    Z,
                    s * width + i * z_access,
                    Projected,
                    b,
                    head * z_head + layout.first(tx, s) + i * z_access,
                )
        for i in T.unroll(held):
            Z[i] = layout.within(tx, i, Z[i], f32(0.0))

    @T.inline
    def store_key(X, Ring, layer, slot, head, row, tx):
        """X rounded, into the ring and back."""
        rounded = T.alloc_local((held,), dtype)
        for i in T.unroll(held):
            rounded[i] = T.Cast(dtype, X[i])
            X[i] = T.Cast("float32", rounded[i])
        for s in T.unroll(slices):
            if tx < lanes and layout.vector(tx, s) < layout.vectors:
                for j in T.vectorized(width):
                    Ring[layer, slot, row, head * z_head + layout.first(tx, s) + j] = rounded[
                        s * width + j
                    ]

    @T.inline
    def newest_key(
        Z, Gamma, Beta, Rope, Own, Keys, MemoryKeys, Newest, layer, slot, head, position, tx
    ):
        """One warp writes k and ak into the rings; Newest[0] = the newest key's score."""
        X = T.alloc_local((held,), "float32")
        turned = T.alloc_local((held,), "float32")
        dot = T.alloc_local((1,), "float32")
        transform.affine(Z, Gamma, Beta, 3, head, tx, X)
        store_key(X, MemoryKeys, layer, slot, head, T.truncmod(position, 2 * chunk), tx)
        transform.affine(Z, Gamma, Beta, 1, head, tx, X)
        transform.rotate(X, Rope, T.truncmod(position, chunk), head, tx, turned)
        store_key(turned, Keys, layer, slot, head, T.truncmod(position, 2 * chunk), tx)
        dot[0] = total([Own[i] * turned[i] for i in range(held)])
        add_lane(dot)
        if tx == 0:
            Newest[0] = dot[0]

    @T.inline
    def newest_value(V, Values, weight, Sums, b, layer, slot, head, position, tx):
        """Sums += weight * v, which goes into the ring."""
        new = T.alloc_local((values.width,), "float32")
        rounded = T.alloc_local((values.width,), dtype)
        for i in T.unroll(values.rounds):
            column = T.meta_var(head * v_head + values.column(tx, i))
            value_vectors.load_row(new, 0, V, b, column)
            for j in T.unroll(values.width):
                rounded[j] = T.Cast(dtype, new[j])
            if tx + i * threads < values.vectors:
                for j in T.unroll(values.width):
                    Sums[i * values.width + j] = Sums[i * values.width + j] + weight * T.Cast(
                        "float32", rounded[j]
                    )
                for j in T.vectorized(values.width):
                    Values[layer, slot, T.truncmod(position, 2 * chunk), column + j] = rounded[j]

    @T.inline
    def score_keys(
        Keys,
        KRing,
        Own,
        Before,
        Scores,
        Highest,
        layer,
        slot,
        head,
        start,
        first,
        count,
        before,
        tx,
    ):
        """Scores of the CTA's keys in the ring; the first ``before`` are of the previous chunk."""
        dots = T.alloc_local((ahead,), "float32")
        for block in T.serial(T.ceildiv(count, together * ahead)):
            for u in T.unroll(ahead):
                key = T.meta_var((block * ahead + u) * together + tx // lanes)
                dots[u] = total(
                    [
                        T.Select(key < before, Before[i], Own[i])
                        * T.Cast("float32", KRing[u * held + i])
                        for i in range(held)
                    ]
                )
                load_key(
                    Keys,
                    KRing,
                    u,
                    layer,
                    slot,
                    head,
                    start,
                    first + key + together * ahead,
                    first + count - 1,
                    tx,
                )
            add_lanes(dots)
            for u in T.unroll(ahead):
                key = T.meta_var((block * ahead + u) * together + tx // lanes)
                if key < count:
                    Highest[0] = T.max(Highest[0], dots[u])
                    if tx % lanes == 0:
                        Scores[key] = dots[u]

    @T.inline
    def features(Z, Gamma, Beta, X, Features, head, first, rows, tx):
        """The weights of the CTA's rows of the memory, zeros behind them; by one warp."""
        transform.affine(Z, Gamma, Beta, 2, head, tx, X)
        transform.softmax(X, tx)
        for i in T.unroll(held):
            feature = T.meta_var(layout.vector(tx, i // width) * width + i % width - first)
            if tx < lanes and feature >= 0 and feature < rows:
                Features[feature] = X[i]
        for i in T.serial(T.ceildiv(rows, memory_rows.step) * memory_rows.step - rows):
            Features[rows + i] = f32(0.0)

    @T.inline
    def mark(Scale, row, level, kind, tx):
        if tx == 0:
            Scale[row, 0] = level
            Scale[row, 1] = kind

    @T.inline
    def attend(buffers, Out, Scale, layer, slot, b, head, row, split, position, share, tx):
        """The CTA's keys and values, row + split of the results."""
        Projected, V, Gamma, Beta, Rope, Keys, Values, MemoryKeys, Memory = buffers
        Scores = T.alloc_shared((scores_size,), "float32")
        Newest = T.alloc_shared((1,), "float32")
        Highest = T.alloc_shared((1, threads // WARP), "float32")
        Totals = T.alloc_shared((1, threads // WARP), "float32")
        Joined = T.alloc_shared((values.shared,), "float32")
        KRing = T.alloc_local((ahead * held,), dtype)
        VRing = T.alloc_local((values.ring,), dtype)
        Z = T.alloc_local((held,), "float32")
        X = T.alloc_local((held,), "float32")
        Own = T.alloc_local((held,), "float32")
        Before = T.alloc_local((held,), "float32")
        Sums = T.alloc_local((values.sums,), "float32")
        highest = T.alloc_local((1,), "float32")
        sum_exp = T.alloc_local((1,), "float32")
        start = shares.ring_start(position)
        first = shares.first_key(position, share, split)
        # The newest key is not in the ring yet.
        newest = T.Cast(
            "int32", shares.first_key(position, share, split + 1) == shares.visible(position)
        )
        stored = shares.first_key(position, share, split + 1) - first - newest

        # What comes from the rings is on its way while the query is made.
        for u in T.unroll(ahead):
            load_key(
                Keys, KRing, u, layer, slot, head, start,
                first + u * together + tx // lanes, first + stored - 1, tx,
            )  # fmt: skip
        value_operands = T.meta_var((Values, layer, slot, head, start, first, stored))
        values.start(value_operands, VRing, tx)
        launch.wait()
        load_z(Projected, Z, b, head, tx)
        transform.normalise(Z)
        transform.affine(Z, Gamma, Beta, 0, head, tx, X)
        transform.rotate(X, Rope, T.truncmod(position, chunk), head, tx, Own)
        transform.rotate(X, Rope, chunk + T.truncmod(position, chunk), head, tx, Before)
        if newest == 1 and by_warps(unit, tx < WARP):
            newest_key(
                Z, Gamma, Beta, Rope, Own, Keys, MemoryKeys, Newest, layer, slot, head, position, tx
            )
        highest[0] = T.min_value("float32")
        score_keys(
            Keys, KRing, Own, Before, Scores, highest, layer, slot, head, start, first, stored,
            shares.previous(position) - first, tx,
        )  # fmt: skip
        cta_largest(highest, Highest, tx)
        if newest == 1:
            highest[0] = T.max(highest[0], Newest[0])
        sum_exp[0] = f32(0.0)
        for i in T.serial(T.ceildiv(T.ceildiv(stored, values.step) * values.step - tx, threads)):
            key = T.meta_var(tx + i * threads)
            Scores[key] = T.Select(key < stored, T.exp(Scores[key] - highest[0]), f32(0.0))
            sum_exp[0] = sum_exp[0] + Scores[key]
        cta_total(sum_exp, Totals, tx)
        for i in T.unroll(values.sums):
            Sums[i] = f32(0.0)
        values.add(value_operands, VRing, Scores, stored, Sums, tx)
        if newest == 1:
            weight: T.let = T.exp(Newest[0] - highest[0])
            sum_exp[0] = sum_exp[0] + weight
            newest_value(V, Values, weight, Sums, b, layer, slot, head, position, tx)
        values.store(Sums, Joined, Out, row + split, tx)
        mark(Scale, row + split, highest[0], sum_exp[0], tx)

    @T.inline
    def read_memory(
        Projected, Gamma, Beta, Memory, Out, Scale, layer, slot, b, head, row, first, rows, tx
    ):
        """The CTA's rows of the memory, times softmax_features(aq); row ``row`` of the results."""
        Features = T.alloc_shared((features_size,), "float32")
        Joined = T.alloc_shared((memory_rows.shared,), "float32")
        MRing = T.alloc_local((memory_rows.ring,), "float32")
        Z = T.alloc_local((held,), "float32")
        X = T.alloc_local((held,), "float32")
        Sums = T.alloc_local((memory_rows.sums,), "float32")
        operands = T.meta_var((Memory, layer, slot, head, first, rows))
        memory_rows.start(operands, MRing, tx)
        launch.wait()
        if by_warps(unit, tx < WARP):
            load_z(Projected, Z, b, head, tx)
            transform.normalise(Z)
            features(Z, Gamma, Beta, X, Features, head, first, rows, tx)
        for i in T.unroll(memory_rows.sums):
            Sums[i] = f32(0.0)
        T.tvm_storage_sync("shared")
        memory_rows.add(operands, MRing, Features, rows, Sums, tx)
        memory_rows.store(Sums, Joined, Out, row, tx)
        mark(Scale, row, f32(0.0), f32(MEMORY), tx)

    @T.inline
    def one_share(buffers, Position, Out, Scale, layer, slot, b, head, split, tx):
        Projected, V, Gamma, Beta, Rope, Keys, Values, MemoryKeys, Memory = buffers
        row = T.meta_var((b * heads + head) * (splits + 1))
        position = Position[slot]
        share = shares.bytes(position)
        keys = T.meta_var(
            shares.first_key(position, share, split + 1) - shares.first_key(position, share, split)
        )
        first_row = shares.first_row(position, share, split)
        rows = shares.first_row(position, share, split + 1) - first_row
        if keys > 0:
            attend(buffers, Out, Scale, layer, slot, b, head, row, split, position, share, tx)
        if rows > 0:
            # The share with the last keys may have the first rows, too: their sums go to the end.
            read_memory(
                Projected, Gamma, Beta, Memory, Out, Scale, layer, slot, b, head,
                row + T.Select(keys > 0, splits, split), first_row, rows, tx,
            )  # fmt: skip
        else:
            launch.wait()
            if keys == 0:
                mark(Scale, row + split, f32(0.0), f32(NOTHING), tx)
            elif shares.first_key(position, share, split + 1) == shares.visible(position):
                mark(Scale, row + splits, f32(0.0), f32(NOTHING), tx)

    @T.prim_func(private=True)
    def attention_step(
        projected: T.handle,
        v: T.handle,
        gamma: T.handle,
        beta: T.handle,
        rope: T.handle,
        slots: T.handle,
        position: T.handle,
        keys: T.handle,
        values_ring: T.handle,
        memory_keys: T.handle,
        memory: T.handle,
        layer: T.int64,
        partial: T.handle,
        scale: T.handle,
    ):
        T.func_attr(launch.attributes)
        num_slots = T.int64()
        Projected = T.match_buffer(projected, (batch, columns), "float32")
        V = T.match_buffer(v, (batch, value_dim), "float32")
        Gamma = T.match_buffer(gamma, (4, z_dim), "float32")
        Beta = T.match_buffer(beta, (4, z_dim), "float32")
        Table = T.match_buffer(rope, (2 * chunk, angles // 2, 2), "float32")
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Values = T.match_buffer(values_ring, (layers, num_slots, 2 * chunk, value_dim), dtype)
        MemoryKeys = T.match_buffer(memory_keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Memory = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        Partial = T.match_buffer(partial, (batch, heads, splits + 1, v_head), "float32")
        Scale = T.match_buffer(scale, (batch, heads, splits + 1, 2), "float32")
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": shares.resident})
        split, head, b = T.cta_id([splits, heads, batch])
        tx = T.thread_id([threads])
        Rope = T.decl_buffer((2 * chunk, angles), "float32", data=Table.data)
        Rows = T.decl_buffer((batch * heads * (splits + 1), v_head), "float32", data=Partial.data)
        Kinds = T.decl_buffer((batch * heads * (splits + 1), 2), "float32", data=Scale.data)
        slot = Slots[b]
        if slot >= 0:
            one_share(
                (Projected, V, Gamma, Beta, Rope, Keys, Values, MemoryKeys, Memory),
                Position,
                Rows,
                Kinds,
                layer,
                slot,
                b,
                head,
                split,
                tx,
            )
        else:
            launch.wait()

    return attention_step
