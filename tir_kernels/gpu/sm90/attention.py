"""Attention of many consecutive queries of one sequence on Hopper: two products with a softmax.

``attention_weights`` writes the softmax probabilities [H, m, 2C] (column j is the key in ring row
j), ``attention`` multiplies them with the values, gates, and adds the memory read. Both go over
the visible keys in two runs: the previous chunk's half of the ring, then the own chunk's up to the
last query of the tile.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tvm.backend.cuda.lang.pipeline import TMABar
from tvm.script import tirx as T

from ...vector_math import f32, largest, total
from ..gate import silu
from ..reduce import shuffle_xor
from . import tile
from .matmul import CONSUMER_REGISTERS, CONSUMERS, CTAS, LOADER_REGISTERS, TILE_ROWS
from .pipeline import Ring, accumulate, encode, load, panel_of_stage

# Keys of a tile of scores.
_KEYS = 128
# Query rows that go over the same keys: the tiles of a cluster of two CTAs.
_BLOCK_ROWS = 2 * TILE_ROWS
_LOG2E = 1.4426950408889634
_LOWEST = -1e30


def supports(z_head: int, v_head: int, chunk: int, dtype: str) -> bool:
    """Whether both kernels take this shape: whole panels of features and whole tiles of keys."""
    return (
        dtype in ("float16", "bfloat16")
        and z_head in (64, 128, 256)
        and v_head % tile.PANEL == 0
        and chunk % _KEYS == 0
    )


def power_of_two(result, x) -> None:
    """result = 2^x in one instruction, 0 where that would be denormal."""
    T.evaluate(T.ptx["ex2.approx.ftz.f32"](result, x))


@dataclasses.dataclass(frozen=True)
class _Window:
    """The keys that a block of queries sees, in units of ``width`` ring rows."""

    start: Any  # index of query row 0 in its chunk
    own: Any  # first ring row of the own chunk
    seen: Any  # keys of the own chunk that the block's last query sees
    previous: Any  # units in the previous chunk
    count: Any  # units in both
    width: int
    chunk: int

    def is_own(self, number):
        return number >= self.previous

    def first_key(self, number):
        """Index in its chunk of the first key of a unit."""
        return T.Select(self.is_own(number), number - self.previous, number) * self.width

    def ring_row(self, number):
        half = T.Select(self.is_own(number), self.own, self.chunk - self.own)
        return half + self.first_key(number)


def _window(position, row0, m, chunk: int, width: int) -> _Window:
    """What the block around row0 (of m rows) sees; ``position`` is that of row 0."""
    start = T.Bind(T.truncmod(position, chunk))
    own = T.Bind(T.truncmod(position, 2 * chunk) - start)
    block_end = T.truncdiv(row0, _BLOCK_ROWS) * _BLOCK_ROWS + _BLOCK_ROWS
    seen = T.Bind(start + T.min(block_end, m))
    previous = T.Bind(T.Select(position >= chunk, chunk // width, 0))
    count = T.Bind(previous + T.truncdiv(seen + width - 1, width))
    return _Window(start, own, seen, previous, count, width, chunk)


@functools.cache
def attention_weights(
    heads: int,
    z_head: int,
    v_head: int,
    chunk: int,
    layers: int,
    dtype: str,
    splits: int = 4,
    stages: int = 5,
):
    """Softmax probabilities of queries [3, m, S]; zero where masked, for the keys of its block.

    A cluster of ``splits`` CTAs has one head's tile of 128 queries; its CTAs take tiles of keys in
    turn. A first pass over the keys finds each row's maximum and sum, which the CTAs exchange; the
    second computes the scores again and writes.
    """
    z_dim = heads * z_head
    panels = z_head // tile.PANEL
    panel_bytes = _KEYS * tile.PANEL * 2
    owned = _KEYS // 2  # scores of a thread, in two rows
    write = tile.store(_KEYS, dtype, 2 * chunk)

    def own_tiles(window, rank):
        """Tiles of keys of one CTA of the cluster."""
        return T.truncdiv(window.count + splits - 1 - rank, splits)

    def query_panel(buffer):
        def at(stage, panel, where):
            which, row = where
            return tile.rows_descriptor(buffer.ptr_to([which, panel, row, 0]))

        return at

    @T.inline
    def load_tiles(q_map, k_map, q_tile, k_ring, ring, loaded, window, place, rank):
        head, row0, base = place
        state = ring.loading()
        loaded.arrive(0, 2 * panels * TILE_ROWS * tile.PANEL * 2)
        for which in T.unroll(2):
            for panel in T.unroll(panels):
                load(
                    q_tile.ptr_to([which, panel, 0, 0]),
                    q_map,
                    (head * z_head + panel * tile.PANEL, row0, which),
                    loaded.ptr_to([0]),
                )
        for _ in T.serial(2):
            for turn in T.serial(own_tiles(window, rank)):
                key_row = base + window.ring_row(rank + turn * splits)
                for panel in T.serial(panels):
                    ring.reserve(state, panel_bytes)
                    load(
                        k_ring.ptr_to([state.stage, 0, 0]),
                        k_map,
                        (head * z_head + panel * tile.PANEL, key_row),
                        ring.barrier(state),
                    )
                    state.advance()

    @T.inline
    def mask(scores, first_key, first_query, tx):
        """Hides the keys after the query; both are indices in the chunk."""
        query = first_query + tx // 32 * 16 + tx % 32 // 4
        key = first_key + tx % 4 * 2
        for i in T.unroll(owned):
            if key + i // 4 * 8 + i % 2 > query + i // 2 % 2 * 8:
                scores[i] = f32(_LOWEST)

    @T.inline
    def fold(scores, highest, sums):
        """The two rows' maxima over all columns so far, and this thread's part of their sums."""
        offset = T.alloc_local((1,), "float32")
        scale = T.alloc_local((1,), "float32")
        for below in T.unroll(2):
            row_scores = T.meta_var(
                [scores[4 * j + 2 * below + i] for j in range(owned // 4) for i in (0, 1)]
            )
            offset[0] = T.max(highest[below], largest(row_scores))
            offset[0] = T.max(offset[0], shuffle_xor(offset[0], 1))
            offset[0] = T.max(offset[0], shuffle_xor(offset[0], 2))
            power_of_two(scale[0], (highest[below] - offset[0]) * f32(_LOG2E))
            highest[below] = offset[0]
            offset[0] = offset[0] * f32(_LOG2E)
            for j in T.unroll(owned // 2):
                index = T.meta_var(j // 2 * 4 + 2 * below + j % 2)
                power_of_two(scores[index], scores[index] * f32(_LOG2E) - offset[0])
            sums[below] = sums[below] * scale[0] + total(row_scores)

    @T.inline
    def exchange(highest, sums, shared, arrived, rank, first_row, tx):
        """The rows' maxima and sums over all keys, as log2 of the sum of powers: in ``highest``."""
        row = first_row + tx // 32 * 16 + tx % 32 // 4
        for below in T.unroll(2):
            sums[below] = sums[below] + shuffle_xor(sums[below], 1)
            sums[below] = sums[below] + shuffle_xor(sums[below], 2)
        if tx % 4 == 0:
            address = T.alloc_local((1,), "uint32")
            for peer in T.unroll(splits):
                for below in T.unroll(2):
                    T.ptx["mapa.shared::cluster.u32"](
                        address[0],
                        T.cuda.cvta_generic_to_shared(shared.ptr_to([rank, row + 8 * below, 0])),
                        T.uint32(peer),
                    )
                    T.ptx["st.shared::cluster.v2.f32"](address[0], highest[below], sums[below])
                T.ptx["mapa.shared::cluster.u32"](
                    address[0], T.cuda.cvta_generic_to_shared(arrived.ptr_to([0])), T.uint32(peer)
                )
                T.ptx["mbarrier.arrive.release.cluster.shared::cluster.b64"](address[0])
        T.cuda.mbarrier_wait_acquire_cluster(arrived.ptr_to([0]), 0)
        for below in T.unroll(2):
            highest[below] = largest([shared[peer, row + 8 * below, 0] for peer in range(splits)])
            sums[below] = total(
                [
                    shared[peer, row + 8 * below, 1]
                    * T.exp2((shared[peer, row + 8 * below, 0] - highest[below]) * f32(_LOG2E))
                    for peer in range(splits)
                ]
            )
            highest[below] = highest[below] * f32(_LOG2E) + T.log2(sums[below])

    @T.inline
    def score(run, scores, state, window, number, row0, first_row, tx):
        run(
            scores,
            state,
            panels,
            False,
            (T.Select(window.is_own(number), 0, 1), first_row),
            tx,
        )
        first_query = window.start + row0 + first_row
        if T.And(window.is_own(number), window.first_key(number) + _KEYS - 1 > first_query):
            mask(scores, window.first_key(number), first_query, tx)

    @T.inline
    def softmax_tiles(
        weights, q_tile, k_ring, ring, loaded, shared, arrived, window, place, rank, first_row, tx
    ):
        head, row0, m = place
        state = ring.reading()
        scores = T.alloc_local((owned,), "float32")
        highest = T.alloc_local((2,), "float32")
        sums = T.alloc_local((2,), "float32")
        run = T.meta_var(
            accumulate(ring, query_panel(q_tile), panel_of_stage(k_ring), _KEYS, dtype)
        )
        for below in T.unroll(2):
            highest[below] = f32(_LOWEST)
            sums[below] = f32(0.0)
        loaded.wait(0, 0)
        for turn in T.serial(own_tiles(window, rank)):
            score(run, scores, state, window, rank + turn * splits, row0, first_row, tx)
            fold(scores, highest, sums)
        exchange(highest, sums, shared, arrived, rank, first_row, tx)
        for turn in T.serial(own_tiles(window, rank)):
            score(run, scores, state, window, rank + turn * splits, row0, first_row, tx)
            for i in T.unroll(owned):
                power_of_two(scores[i], scores[i] * f32(_LOG2E) - highest[i // 2 % 2])
            write(
                weights,
                scores,
                tx,
                head * m + row0 + first_row,
                window.ring_row(rank + turn * splits),
                head * m + m,
            )

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
        q_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(q_map, Queries, (z_dim, m, 3), TILE_ROWS)
        k_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(k_map, Keys, (z_dim, layers * num_slots * 2 * chunk), _KEYS)
        T.device_entry()
        rank = T.cta_id_in_cluster([splits])
        cta = T.cta_id([splits * heads * T.ceildiv(m, TILE_ROWS)])
        warpgroup = T.warpgroup_id([CONSUMERS + 1])
        tx = T.thread_id_in_wg([tile.THREADS])
        pool = T.SMEMPool()
        q_tile = pool.alloc((2, panels, TILE_ROWS, tile.PANEL), dtype, align=1024)
        k_ring = pool.alloc((stages, _KEYS, tile.PANEL), dtype, align=1024)
        shared = pool.alloc((splits, TILE_ROWS, 2), "float32", align=16)
        ring = Ring(pool, stages, CONSUMERS * 4)
        loaded = TMABar(pool, 1)
        loaded.init(1)
        arrived = TMABar(pool, 1)
        arrived.init(splits * TILE_ROWS // 2)
        pool.commit()
        rows = Weights.view(heads * m, 2 * chunk)
        # The last rows see the most keys: they begin first.
        head = T.truncmod(T.truncdiv(cta, splits), heads)
        row0 = (T.ceildiv(m, TILE_ROWS) - 1 - T.truncdiv(cta, splits * heads)) * TILE_ROWS
        slot = Slots[0]
        at = Position[slot]
        window = T.meta_var(_window(at, row0, m, chunk, _KEYS))
        base = T.cast((layer * num_slots + slot) * (2 * chunk), "int32")
        T.ptx.fence.mbarrier_init.release.cluster()
        T.cuda.cluster_sync()
        if warpgroup == CONSUMERS:
            if tx == 0:
                load_tiles(
                    q_map, k_map, q_tile, k_ring, ring, loaded, window, (head, row0, base), rank
                )
        else:
            softmax_tiles(
                rows,
                q_tile,
                k_ring,
                ring,
                loaded,
                shared,
                arrived,
                window,
                (head, row0, m),
                rank,
                warpgroup * tile.ROWS,
                tx,
            )

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
    stages: int = 4,
    cluster: int = 2,
):
    """gated [m, E] = silu(r + bias) * (weights @ values) + queries[2] @ memory.

    ``projected`` [m, S+E+D] holds r from column S on, without its bias; memory is [H, zh, vh] in
    the model's dtype. Persistent CTAs take tiles of 128 rows, those with the most keys first;
    clusters of two have the tiles of a block of rows and load half of the values each.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = next(width for width in (256, 128, 64) if v_head % width == 0)
    across = v_head // columns
    boxes = columns // tile.PANEL
    panels = z_head // tile.PANEL
    width = z_dim + value_dim + model_dim
    stage_bytes = (TILE_ROWS + columns) * tile.PANEL * 2
    write = tile.store(columns, dtype, value_dim)
    read_words = tile.load_words(columns)

    rows = TILE_ROWS * cluster
    clusters = CTAS // cluster
    share = tile.PANEL // cluster

    def tiles(m):
        """Tiles of a cluster."""
        return T.truncdiv(m + rows - 1, rows) * heads * across

    def number(turn, group):
        """A cluster's ``turn``-th tile; every other turn goes backwards, so that sums even out."""
        backwards = turn * clusters + clusters - 1 - group
        return T.Select(turn % 2 == 0, turn * clusters + group, backwards)

    def place(number, m, rank):
        """Head, first row and first column in the head of a CTA's tile."""
        row = (T.truncdiv(m + rows - 1, rows) - 1 - T.truncdiv(number, heads * across)) * rows
        head = T.truncmod(T.truncdiv(number, across), heads)
        return head, row + rank * TILE_ROWS, T.truncmod(number, across) * columns

    def value_panels(buffer):
        def at(stage, panel, row):
            return tile.columns_descriptor(
                buffer.ptr_to([stage, 0, 0, 0]), tile.PANEL * tile.PANEL * 2
            )

        return at

    def clear_unseen(b_ring, window, first_row, tx):
        """Values after the last key may be anything, and a weight of zero does not hide a NaN."""
        words = b_ring.view("uint32")

        @T.inline
        def clear(stage, panel):
            if T.And(panel == window.count - 1, window.seen % tile.PANEL != 0):
                thread = first_row // tile.ROWS * tile.THREADS + tx
                for box in T.unroll(boxes):
                    for i in T.serial(tile.PANEL * 32 // (CONSUMERS * tile.THREADS)):
                        word = i * CONSUMERS * tile.THREADS + thread
                        if word // 32 >= window.seen % tile.PANEL:
                            words[stage, box, word // 32, word % 32] = T.uint32(0)
                T.ptx.fence.proxy.async_.shared__cta()
                T.ptx.bar.sync(1, CONSUMERS * tile.THREADS)

        return clear

    @T.inline
    def load_stage(ring, state, a_ring, b_ring, a_map, a_where, b_map, b_column, b_row, rank):
        ring.reserve(state, stage_bytes)
        load(a_ring.ptr_to([state.stage, 0, 0]), a_map, a_where, ring.barrier(state))
        for box in T.unroll(boxes):
            load(
                b_ring.ptr_to([state.stage, box, rank * share, 0]),
                b_map,
                (b_column + box * tile.PANEL, b_row + rank * share),
                ring.barrier(state),
                cluster,
            )
        state.advance()

    @T.inline
    def load_tiles(maps, a_ring, b_ring, ring, position, base, m, group, rank):
        weights_map, values_map, queries_map, memory_map = maps
        state = ring.loading()
        turn = T.local_scalar("int32")
        turn = 0
        while number(turn, group) < tiles(m):
            head, row0, column = T.meta_var(place(number(turn, group), m, rank))
            window = T.meta_var(_window(position, row0, m, chunk, tile.PANEL))
            for panel in T.serial(window.count):
                key = window.ring_row(panel)
                load_stage(
                    ring,
                    state,
                    a_ring,
                    b_ring,
                    weights_map,
                    (key, row0, head),
                    values_map,
                    head * v_head + column,
                    base + key,
                    rank,
                )
            for panel in T.serial(panels):
                load_stage(
                    ring,
                    state,
                    a_ring,
                    b_ring,
                    queries_map,
                    (head * z_head + panel * tile.PANEL, row0, 2),
                    memory_map,
                    column,
                    head * z_head + panel * tile.PANEL,
                    rank,
                )
            turn = turn + 1

    @T.inline
    def apply_gate(sums, projected, bias, row, column, m, tx):
        """sums *= silu(r + bias); four lanes read 16 bytes of r each and exchange."""
        first = row + tx // 32 * 16 + tx % 32 // 4
        words = T.alloc_local((4,), "uint32")
        for j in T.unroll(columns // 32):
            for below in T.unroll(2):
                at = T.meta_var(z_dim + column + 32 * j)
                read_words(words, projected, T.min(first + 8 * below, m - 1), at, tx)
                for i in T.unroll(4):
                    for k in T.unroll(2):
                        index = T.meta_var(16 * j + 4 * i + 2 * below + k)
                        sums[index] = sums[index] * silu(
                            tile.half_of_word(words[i], k, dtype)
                            + bias[at + 8 * i + 2 * (tx % 4) + k]
                        )

    @T.inline
    def multiply_tiles(
        gated, projected, bias, a_ring, b_ring, ring, position, m, group, rank, first_row, tx
    ):
        state = ring.reading()
        sums = T.alloc_local((columns // 2,), "float32")
        weights_at = T.meta_var(panel_of_stage(a_ring))
        values_at = T.meta_var(value_panels(b_ring))
        read_memory = T.meta_var(accumulate(ring, weights_at, values_at, columns, dtype, True))
        turn = T.local_scalar("int32")
        turn = 0
        while number(turn, group) < tiles(m):
            head, row0, column = T.meta_var(place(number(turn, group), m, rank))
            window = T.meta_var(_window(position, row0, m, chunk, tile.PANEL))
            clear = T.meta_var(clear_unseen(b_ring, window, first_row, tx))
            attend = T.meta_var(
                accumulate(ring, weights_at, values_at, columns, dtype, True, clear)
            )
            attend(sums, state, window.count, False, first_row, tx)
            apply_gate(sums, projected, bias, row0 + first_row, head * v_head + column, m, tx)
            read_memory(sums, state, panels, True, first_row, tx)
            write(gated, sums, tx, row0 + first_row, head * v_head + column, m)
            turn = turn + 1

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
        Projected = T.match_buffer(projected, (m, width), dtype)
        Bias = T.match_buffer(bias, (width,), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Gated = T.match_buffer(gated, (m, value_dim), dtype)
        weights_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(weights_map, Weights, (2 * chunk, m, heads), TILE_ROWS)
        values_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(values_map, Values, (value_dim, layers * num_slots * 2 * chunk), share)
        queries_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(queries_map, Queries, (z_dim, m, 3), TILE_ROWS)
        memory_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(memory_map, Memory, (v_head, heads * z_head), share)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})
        rank = T.cta_id_in_cluster([cluster])
        cta = T.cta_id([CTAS])
        warpgroup = T.warpgroup_id([CONSUMERS + 1])
        tx = T.thread_id_in_wg([tile.THREADS])
        pool = T.SMEMPool()
        a_ring = pool.alloc((stages, TILE_ROWS, tile.PANEL), dtype, align=1024)
        b_ring = pool.alloc((stages, boxes, tile.PANEL, tile.PANEL), dtype, align=1024)
        ring = Ring(pool, stages, CONSUMERS * 4, cluster)
        pool.commit()
        slot = Slots[0]
        at = Position[slot]
        base = T.cast((layer * num_slots + slot) * (2 * chunk), "int32")
        T.ptx.fence.mbarrier_init.release.cluster()
        T.cuda.cluster_sync()
        if warpgroup == CONSUMERS:
            T.ptx.setmaxnreg.dec.sync.aligned.u32(LOADER_REGISTERS)
            if tx == 0:
                load_tiles(
                    (weights_map, values_map, queries_map, memory_map),
                    a_ring,
                    b_ring,
                    ring,
                    at,
                    base,
                    m,
                    T.truncdiv(cta, cluster),
                    rank,
                )
        else:
            T.ptx.setmaxnreg.inc.sync.aligned.u32(CONSUMER_REGISTERS)
            multiply_tiles(
                Gated,
                Projected,
                Bias,
                a_ring,
                b_ring,
                ring,
                at,
                m,
                T.truncdiv(cta, cluster),
                rank,
                warpgroup * tile.ROWS,
                tx,
            )
        # No CTA may leave while the other can still arrive at its barriers.
        T.cuda.cluster_sync()

    return attention
