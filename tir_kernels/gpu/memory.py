"""Adaptive working memory: what is kept of chunk c-1 after the last token of chunk c.

With ak and v of chunk c-1, per head and feature i, and e = exp(ak - max over positions of ak):
l = logsumexp over positions of ak, n' = logaddexp(n, l), M' = M + exp(l - n') (U - M) with
U = softmax_positions(ak)^T (v - F M) = (e^T v - (e^T F) M) / sum(e), F = softmax_features(ak).
So the second product has only zh rows, and both have operands of the model's dtype.

Four kernels, for B slots whose positions stand at the end of such a chunk; slot -1 is an idle row.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from tvm.script import tirx as T

from ..vector_math import f32, largest, total
from .head_lanes import HeadTransform, head_lanes
from .reduce import WARP, warp_reduce
from .tensor_core import CHUNK, TensorTile
from .tiles import product_tile
from .unit import GpuUnit
from .vectors import vector_width

_THREADS = 256
_LEVELS_THREADS = 512
_LANES = 16  # lanes of a warp that share a vector of features
_AHEAD = 8  # accesses of a thread on their way
_POSITIONS = 16  # of one thread: a sector of transposed weights


@functools.cache
def memory_levels(heads: int, z_head: int, chunk: int, layers: int, dtype: str, unit: GpuUnit):
    """levels [B, 3, S]: max over positions of ak, 1 / sum(e), exp(l - n'); log_norm becomes n'."""
    z_dim = heads * z_head
    width = vector_width(dtype, z_dim)
    threads = unit.cta(_LEVELS_THREADS)
    warps = threads // WARP
    vectors = WARP // _LANES  # of one CTA
    groups = warps * _LANES
    within_largest = warp_reduce(largest, _LANES, width)
    within_total = warp_reduce(total, _LANES, width)

    def column(part, tx):
        """First feature of a thread, of the last vector if there is no such vector."""
        return T.min(part * vectors + tx % WARP // _LANES, z_dim // width - 1) * width

    @T.inline
    def load(Keys, Raw, layer, slot, first, feature, block, tx):
        for u in T.unroll(_AHEAD):
            row = T.meta_var(
                T.min((block * _AHEAD + u) * groups + tx // WARP * _LANES + tx % _LANES, chunk - 1)
            )
            for j in T.vectorized(width):
                Raw[u * width + j] = Keys[layer, slot, first + row, feature + j]

    @T.inline
    def join(V, Shared, fold, within, tx):
        """V [width] folded over the CTA's threads of the same features."""
        within(V)
        if tx % _LANES == 0:
            for j in T.unroll(width):
                Shared[tx // WARP, tx % WARP // _LANES * width + j] = V[j]
        T.tvm_storage_sync("shared")
        for j in T.unroll(width):
            V[j] = fold([Shared[warp, tx % WARP // _LANES * width + j] for warp in range(warps)])

    @T.inline
    def one_slot(Keys, LogNorm, Levels, layer, slot, b, first, part, tx):
        Highest = T.alloc_shared((warps, vectors * width), "float32")
        Totals = T.alloc_shared((warps, vectors * width), "float32")
        raw = T.alloc_local((_AHEAD * width,), dtype)
        highest = T.alloc_local((width,), "float32")
        sums = T.alloc_local((width,), "float32")
        feature: T.let = column(part, tx)
        for j in T.unroll(width):
            highest[j] = T.min_value("float32")
            sums[j] = f32(0.0)
        for block in T.serial(-(-chunk // (groups * _AHEAD))):
            load(Keys, raw, layer, slot, first, feature, block, tx)
            for i in T.unroll(_AHEAD * width):
                highest[i % width] = T.max(highest[i % width], T.Cast("float32", raw[i]))
        join(highest, Highest, largest, within_largest, tx)
        for block in T.serial(-(-chunk // (groups * _AHEAD))):
            load(Keys, raw, layer, slot, first, feature, block, tx)
            for i in T.unroll(_AHEAD * width):
                row = T.meta_var(
                    (block * _AHEAD + i // width) * groups + tx // WARP * _LANES + tx % _LANES
                )
                sums[i % width] = sums[i % width] + T.Select(
                    row < chunk, T.exp(T.Cast("float32", raw[i]) - highest[i % width]), f32(0.0)
                )
        join(sums, Totals, total, within_total, tx)
        if tx < WARP and tx % _LANES == 0 and part * vectors + tx // _LANES < z_dim // width:
            for j in T.unroll(width):
                added: T.float32 = highest[j] + T.log(sums[j])
                before: T.float32 = LogNorm[layer, slot, feature + j]
                level: T.float32 = T.max(added, before)
                after: T.float32 = level + T.log(T.exp(added - level) + T.exp(before - level))
                LogNorm[layer, slot, feature + j] = after
                Levels[b, 0, feature + j] = highest[j]
                Levels[b, 1, feature + j] = f32(1.0) / sums[j]
                Levels[b, 2, feature + j] = T.exp(added - after)

    @T.prim_func(private=True)
    def memory_levels(
        slots: T.handle,
        position: T.handle,
        memory_keys: T.handle,
        log_norm: T.handle,
        layer: T.int64,
        levels: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(memory_keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Norm = T.match_buffer(log_norm, (layers, num_slots, heads, z_head), "float32")
        Levels = T.match_buffer(levels, (batch, 3, z_dim), "float32")
        T.device_entry()
        part, b = T.cta_id([-(-z_dim // (width * vectors)), batch])
        tx = T.thread_id([threads])
        LogNorm = T.decl_buffer((layers, num_slots, z_dim), "float32", data=Norm.data)
        slot = Slots[b]
        if slot >= 0:
            # The position is the next chunk's first: chunk c-1 has the half that it will fill.
            one_slot(
                Keys,
                LogNorm,
                Levels,
                layer,
                slot,
                b,
                T.truncmod(Position[slot], 2 * chunk),
                part,
                tx,
            )

    return memory_levels


@functools.cache
def memory_weights(
    heads: int, z_head: int, v_head: int, chunk: int, layers: int, dtype: str, unit: GpuUnit
):
    """The products' operands: weights [B, H, zh, C] = e^T, features [B, H, C, zh] = F,
    before [B, H, zh, vh] = M."""
    z_dim = heads * z_head
    layout = head_lanes(z_head, dtype)
    lanes, held, width = layout.lanes, layout.held, layout.width
    softmax = HeadTransform(layout, heads, 0, 0.0).softmax
    position_width = vector_width(dtype, _POSITIONS, chunk)
    cast_width = vector_width(dtype, z_dim * v_head)
    read_width = vector_width("float32", cast_width)
    threads = unit.cta(_THREADS)
    # CTAs of each kind.
    features_ctas = -(-chunk * heads * lanes // threads)
    weights_ctas = -(-z_dim // threads) * -(-chunk // _POSITIONS)
    cast_ctas = -(-z_dim * v_head // (cast_width * threads))

    @T.inline
    def features_of(Keys, Features, layer, slot, b, first, item, tx):
        """F of a head at a position for each run of lanes."""
        row: T.int32 = T.min(T.truncdiv(item, heads), chunk - 1)
        head: T.int32 = T.truncmod(item, heads)
        raw = T.alloc_local((held,), dtype)
        X = T.alloc_local((held,), "float32")
        for s in T.unroll(layout.slices):
            for j in T.vectorized(width):
                raw[s * width + j] = Keys[
                    layer, slot, first + row, head * z_head + layout.first(tx, s) + j
                ]
        for i in T.unroll(held):
            X[i] = T.Cast("float32", raw[i])
        softmax(X, tx)
        for i in T.unroll(held):
            raw[i] = T.Cast(dtype, X[i])
        for s in T.unroll(layout.slices):
            if item < chunk * heads and layout.vector(tx, s) < layout.vectors:
                for j in T.vectorized(width):
                    Features[b, head, row, layout.first(tx, s) + j] = raw[s * width + j]

    @T.inline
    def weights_of(Keys, Levels, Weights, layer, slot, b, first, start, feature):
        """e of one feature at several positions."""
        raw = T.alloc_local((_POSITIONS,), dtype)
        if feature < z_dim:
            for t in T.unroll(_POSITIONS):
                raw[t] = Keys[layer, slot, first + T.min(start + t, chunk - 1), feature]
            for t in T.unroll(_POSITIONS):
                raw[t] = T.Cast(dtype, T.exp(T.Cast("float32", raw[t]) - Levels[b, 0, feature]))
            for i in T.unroll(_POSITIONS // position_width):
                if start + i * position_width < chunk:
                    for j in T.vectorized(position_width):
                        Weights[
                            b,
                            T.truncdiv(feature, z_head),
                            T.truncmod(feature, z_head),
                            start + i * position_width + j,
                        ] = raw[i * position_width + j]

    @T.inline
    def cast(Memory, Before, layer, slot, b, element):
        values = T.alloc_local((cast_width,), "float32")
        rounded = T.alloc_local((cast_width,), dtype)
        if element < z_dim * v_head:
            for i in T.unroll(cast_width // read_width):
                for j in T.vectorized(read_width):
                    values[i * read_width + j] = Memory[layer, slot, element + i * read_width + j]
            for j in T.unroll(cast_width):
                rounded[j] = T.Cast(dtype, values[j])
            for j in T.vectorized(cast_width):
                Before[b, element + j] = rounded[j]

    @T.prim_func(private=True)
    def memory_weights(
        slots: T.handle,
        position: T.handle,
        memory_keys: T.handle,
        memory: T.handle,
        levels: T.handle,
        layer: T.int64,
        weights: T.handle,
        features: T.handle,
        before: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(memory_keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Matrix = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        Levels = T.match_buffer(levels, (batch, 3, z_dim), "float32")
        Weights = T.match_buffer(weights, (batch, heads, z_head, chunk), dtype)
        Features = T.match_buffer(features, (batch, heads, chunk, z_head), dtype)
        Cast = T.match_buffer(before, (batch, heads, z_head, v_head), dtype)
        T.device_entry()
        part, b = T.cta_id([features_ctas + weights_ctas + cast_ctas, batch])
        tx = T.thread_id([threads])
        Memory = T.decl_buffer((layers, num_slots, z_dim * v_head), "float32", data=Matrix.data)
        Before = T.decl_buffer((batch, z_dim * v_head), dtype, data=Cast.data)
        slot = Slots[b]
        if slot >= 0:
            first = T.truncmod(Position[slot], 2 * chunk)
            if part < features_ctas:
                features_of(
                    Keys, Features, layer, slot, b, first, (part * threads + tx) // lanes, tx
                )
            else:
                if part < features_ctas + weights_ctas:
                    tile: T.int32 = part - features_ctas
                    weights_of(
                        Keys,
                        Levels,
                        Weights,
                        layer,
                        slot,
                        b,
                        first,
                        T.truncmod(tile, -(-chunk // _POSITIONS)) * _POSITIONS,
                        T.truncdiv(tile, -(-chunk // _POSITIONS)) * threads + tx,
                    )
                else:
                    cast(
                        Memory,
                        Before,
                        layer,
                        slot,
                        b,
                        ((part - features_ctas - weights_ctas) * threads + tx) * cast_width,
                    )

    return memory_weights


def _aligned(z_head: int, v_head: int, chunk: int) -> bool:
    deep = TensorTile.depth
    return z_head % deep == 0 and chunk % deep == 0 and v_head % CHUNK == 0


@functools.cache
def memory_overlap(heads: int, z_head: int, chunk: int, dtype: str, unit: GpuUnit):
    """overlap [B, H, zh, zh] = -e^T F from weights and features."""
    # Small tiles: one for each multiprocessor of a large GPU.
    ptx = TensorTile(dtype, 32, 64, warp_rows=1, warp_columns=4, right_by_depth=True, stages=8)
    tile = product_tile(unit, dtype, ptx, _aligned(z_head, z_head, chunk))
    vector = vector_width(dtype, tile.width, z_head)

    def weight(operands, row, step, k):
        weights, _, b, head, row0, _ = operands
        depth = step * tile.depth + k
        inside = depth < chunk if chunk % tile.depth else None
        return weights, [b, head, T.min(row0 + row, z_head - 1), depth], inside

    def feature(operands, column, step, k):
        _, features, b, head, _, column0 = operands
        depth = step * tile.depth + k
        inside = depth < chunk if chunk % tile.depth else None
        return features, [b, head, depth, T.min(column0 + column, z_head - tile.group)], inside

    product = tile.product(weight, feature)

    @T.prim_func(private=True)
    def memory_overlap(slots: T.handle, weights: T.handle, features: T.handle, overlap: T.handle):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        Slots = T.match_buffer(slots, (batch,), "int32")
        Weights = T.match_buffer(weights, (batch, heads, z_head, chunk), dtype)
        Features = T.match_buffer(features, (batch, heads, chunk, z_head), dtype)
        Overlap = T.match_buffer(overlap, (batch, heads, z_head, z_head), dtype)
        T.device_entry()
        across, down, item = T.cta_id(
            [-(-z_head // tile.columns), -(-z_head // tile.rows), batch * heads]
        )
        tx = T.thread_id([tile.threads])
        arena = tile.arena()
        shared = tile.shared(arena)
        sums = T.alloc_local((tile.accumulators,), "float32")
        rounded = T.alloc_local((vector,), dtype)
        b: T.int32 = T.truncdiv(item, heads)
        head: T.int32 = T.truncmod(item, heads)
        if Slots[b] >= 0:
            for i in T.unroll(tile.accumulators):
                sums[i] = f32(0.0)
            product(
                (Weights, Features, b, head, down * tile.rows, across * tile.columns),
                shared,
                sums,
                -(-chunk // tile.depth),
                tx,
            )
            for run in T.unroll(tile.accumulators // tile.width):
                row: T.let = down * tile.rows + tile.row(tx, run)
                for part in T.unroll(tile.width // vector):
                    column: T.let = across * tile.columns + tile.column(tx, run) + part * vector
                    for j in T.unroll(vector):
                        rounded[j] = T.Cast(
                            dtype, f32(0.0) - sums[run * tile.width + part * vector + j]
                        )
                    if row < z_head and column < z_head:
                        for j in T.vectorized(vector):
                            Overlap[b, head, row, column + j] = rounded[j]

    return memory_overlap


class _Place(NamedTuple):
    """What ``memory_update`` multiplies, and where a CTA's tile of the memory is."""

    weights: Any
    overlap: Any
    values: Any
    before: Any
    layer: Any
    slot: Any
    b: Any
    head: Any
    first: Any  # ring row of the chunk's first value
    row0: Any
    column0: Any


@functools.cache
def memory_update(
    heads: int, z_head: int, v_head: int, chunk: int, layers: int, dtype: str, unit: GpuUnit
):
    """memory [layers, slots, H, zh, vh] becomes M', from what the other kernels made."""
    value_dim = heads * v_head
    depth = math.gcd(64, z_head, chunk)
    ptx = TensorTile(
        dtype, 128, 128, warp_rows=2, warp_columns=4, right_by_depth=True,
        stages=192 // depth, depth=depth,
    )  # fmt: skip
    tile = product_tile(unit, dtype, ptx, _aligned(z_head, v_head, chunk))
    vector = vector_width("float32", tile.width, v_head)

    def inside(depth, extent: int):
        return depth < extent if extent % tile.depth else None

    def clamped(at, row):
        return T.min(at.row0 + row, z_head - 1)

    def weight(at, row, step, k):
        depth = step * tile.depth + k
        return at.weights, [at.b, at.head, clamped(at, row), depth], inside(depth, chunk)

    def value(at, column, step, k):
        depth = step * tile.depth + k
        column = at.head * v_head + T.min(at.column0 + column, v_head - tile.group)
        return at.values, [at.layer, at.slot, at.first + depth, column], inside(depth, chunk)

    def overlap_of(at, row, step, k):
        depth = step * tile.depth + k
        return at.overlap, [at.b, at.head, clamped(at, row), depth], inside(depth, z_head)

    def before_of(at, column, step, k):
        depth = step * tile.depth + k
        column = T.min(at.column0 + column, v_head - tile.group)
        return at.before, [at.b, at.head, depth, column], inside(depth, z_head)

    summarise, correct = tile.product(weight, value), tile.product(overlap_of, before_of)

    @T.inline
    def update(Memory, Levels, at, sums, tx):
        """M + exp(l - n') (sums / sum(e) - M)."""
        matrix = T.alloc_local((vector,), "float32")
        for run in T.unroll(tile.accumulators // tile.width):
            row: T.let = at.row0 + tile.row(tx, run)
            for part in T.unroll(tile.width // vector):
                column: T.let = at.column0 + tile.column(tx, run) + part * vector
                if row < z_head and column < v_head:
                    for j in T.vectorized(vector):
                        matrix[j] = Memory[at.layer, at.slot, at.head, row, column + j]
                    for j in T.unroll(vector):
                        taken: T.let = (
                            sums[run * tile.width + part * vector + j]
                            * Levels[at.b, 1, at.head * z_head + row]
                        )
                        matrix[j] = matrix[j] + Levels[at.b, 2, at.head * z_head + row] * (
                            taken - matrix[j]
                        )
                    for j in T.vectorized(vector):
                        Memory[at.layer, at.slot, at.head, row, column + j] = matrix[j]

    @T.prim_func(private=True)
    def memory_update(
        slots: T.handle,
        position: T.handle,
        weights: T.handle,
        overlap: T.handle,
        values: T.handle,
        before: T.handle,
        levels: T.handle,
        memory: T.handle,
        layer: T.int64,
    ):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Weights = T.match_buffer(weights, (batch, heads, z_head, chunk), dtype)
        Overlap = T.match_buffer(overlap, (batch, heads, z_head, z_head), dtype)
        Values = T.match_buffer(values, (layers, num_slots, 2 * chunk, value_dim), dtype)
        Before = T.match_buffer(before, (batch, heads, z_head, v_head), dtype)
        Levels = T.match_buffer(levels, (batch, 3, heads * z_head), "float32")
        Memory = T.match_buffer(memory, (layers, num_slots, heads, z_head, v_head), "float32")
        T.device_entry()
        down, across, item = T.cta_id(
            [-(-z_head // tile.rows), -(-v_head // tile.columns), batch * heads]
        )
        tx = T.thread_id([tile.threads])
        arena = tile.arena()
        shared = tile.shared(arena)
        sums = T.alloc_local((tile.accumulators,), "float32")
        b: T.int32 = T.truncdiv(item, heads)
        head: T.int32 = T.truncmod(item, heads)
        slot: T.int32 = Slots[b]
        if slot >= 0:
            first: T.int32 = T.truncmod(Position[slot], 2 * chunk)
            at = T.meta_var(
                _Place(
                    Weights, Overlap, Values, Before, layer, slot, b, head, first,
                    down * tile.rows, across * tile.columns,
                )
            )  # fmt: skip
            for i in T.unroll(tile.accumulators):
                sums[i] = f32(0.0)
            summarise(at, shared, sums, -(-chunk // tile.depth), tx)
            correct(at, shared, sums, -(-z_head // tile.depth), tx)
            update(Memory, Levels, at, sums, tx)

    return memory_update
