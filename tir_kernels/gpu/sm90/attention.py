"""Attention of many consecutive queries of one sequence on Hopper: two products with a softmax.

``attention_weights`` writes [H, m, 2C] powers, in the ratio of the softmax probabilities (column j
is the key in ring row j); ``attention`` multiplies them with the values, divides by their sums,
gates, and adds the memory read. Both go over the visible keys in two runs: the previous chunk's
half of the ring, then the own chunk's up to the last query of the tile.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from tvm.backend.cuda.lang.pipeline import MBarrier, TMABar
from tvm.script import tirx as T

from ...vector_math import LOG2E, f32, largest, total
from ..elementary import power_of_two, silu
from ..reduce import shuffle_xor
from . import tile
from .matmul import CONSUMER_REGISTERS, CONSUMERS, CTAS, LOADER_REGISTERS, TILE_ROWS
from .pipeline import Ring, accumulate, encode, load, panel_of_stage

# Keys of a tile of scores.
_KEYS = 128
_LOWEST = -1e30


def supports(z_head: int, v_head: int, chunk: int, dtype: str) -> bool:
    """Whether both kernels take this shape: whole panels of features and whole tiles of keys."""
    return (
        dtype in ("float16", "bfloat16")
        and z_head in (64, 128, 256)
        and v_head % tile.PANEL == 0
        and chunk % _KEYS == 0
    )


@dataclasses.dataclass(frozen=True)
class _Window:
    """The keys that a tile of queries sees, in units of ``width`` ring rows."""

    start: Any  # index of query row 0 in its chunk
    own: Any  # first ring row of the own chunk
    seen: Any  # keys of the own chunk that the tile's last query sees
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
    """What the rows row0 .. row0 + 127 (of m) see; ``position`` is that of row 0."""
    start = T.Bind(T.truncmod(position, chunk))
    own = T.Bind(T.truncmod(position, 2 * chunk) - start)
    seen = T.Bind(start + T.min(row0 + TILE_ROWS, m))
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
    splits: int = 2,
    stages: int = 5,
):
    """2^(score log2(e) - reference) of queries [3, m, S], 0 where masked in a tile of 128 keys.

    A row's reference is its score with its own key, which keeps the largest power above 1; if it
    would pass 2^limit somewhere in the tile, rows are done again with their maximum. Only the ratio
    of a row's powers has a meaning. A cluster of ``splits`` CTAs has one head's tile of 128
    queries; its CTAs take tiles of keys in turn, and tell each other the rows' maxima.
    """
    z_dim = heads * z_head
    panels = z_head // tile.PANEL
    panel_bytes = _KEYS * tile.PANEL * 2
    owned = _KEYS // 2  # scores of a thread, in two rows
    limit = 15.0 if dtype == "float16" else 100.0
    words = z_head // 2 // 4  # of a row of queries or keys, for each of four lanes
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
    def load_queries(q_map, q_tile, loaded, which, head, row0):
        loaded.arrive(which, panels * TILE_ROWS * tile.PANEL * 2)
        for panel in T.unroll(panels):
            load(
                q_tile.ptr_to([which, panel, 0, 0]),
                q_map,
                (head * z_head + panel * tile.PANEL, row0, which),
                loaded.ptr_to([which]),
            )

    @T.inline
    def load_keys(k_map, k_ring, ring, state, head, key_row):
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
    def load_tiles(q_map, k_map, q_tile, k_ring, ring, barriers, window, place, rank, again):
        head, row0, base = T.meta_var(place)
        loaded, _, decided = T.meta_var(barriers)
        state = ring.loading()
        if rank < window.previous:
            load_queries(q_map, q_tile, loaded, 1, head, row0)
        else:
            load_queries(q_map, q_tile, loaded, 0, head, row0)
        for turn in T.serial(own_tiles(window, rank)):
            key_row = base + window.ring_row(rank + turn * splits)
            load_keys(k_map, k_ring, ring, state, head, key_row)
            if T.And(turn == 0, rank < window.previous):
                load_queries(q_map, q_tile, loaded, 0, head, row0)
        decided.wait(0, 0)
        if again[0] != 0:
            for turn in T.serial(own_tiles(window, rank)):
                key_row = base + window.ring_row(rank + turn * splits)
                load_keys(k_map, k_ring, ring, state, head, key_row)

    @T.inline
    def mask(scores, first_key, first_query, tx):
        """Hides the keys after the query; both are indices in the chunk."""
        query = first_query + tx // 32 * 16 + tx % 32 // 4
        key = first_key + tx % 4 * 2
        for i in T.unroll(owned):
            if key + i // 4 * 8 + i % 2 > query + i // 2 % 2 * 8:
                scores[i] = f32(_LOWEST)

    @T.inline
    def own_scores(reference, queries, keys, at, row, last_row, tx):
        """The two rows' scores with their own keys, times log2(e)."""
        layer, slot, own, index, feature = T.meta_var(at)
        q_words = queries.view("uint32")
        k_words = keys.view("uint32")
        q = T.alloc_local((4,), "uint32")
        k = T.alloc_local((4,), "uint32")
        for below in T.unroll(2):
            past: T.let = T.min(row + 8 * below, last_row)
            reference[below] = f32(0.0)
            for part in T.unroll(words // 4):
                word = T.meta_var(feature // 2 + (4 * part + tx % 4) * 4)
                for i in T.vectorized(4):
                    q[i] = q_words[0, past, word + i]
                for i in T.vectorized(4):
                    k[i] = k_words[layer, slot, own + index + past, word + i]
                for i in T.unroll(8):
                    reference[below] = reference[below] + tile.half_of_word(
                        q[i // 2], i % 2, dtype
                    ) * tile.half_of_word(k[i // 2], i % 2, dtype)
            reference[below] = reference[below] + shuffle_xor(reference[below], 1)
            reference[below] = reference[below] + shuffle_xor(reference[below], 2)
            reference[below] = reference[below] * f32(LOG2E)

    @T.inline
    def raise_highest(scores, highest):
        for below in T.unroll(2):
            highest[below] = T.max(
                highest[below],
                largest([scores[4 * j + 2 * below + i] for j in range(owned // 4) for i in (0, 1)]),
            )

    @T.inline
    def exchange(highest, shared, arrived, rank, row, tx):
        """The rows' maxima over the keys of all CTAs."""
        for below in T.unroll(2):
            highest[below] = T.max(highest[below], shuffle_xor(highest[below], 1))
            highest[below] = T.max(highest[below], shuffle_xor(highest[below], 2))
        if tx % 4 == 0:
            address = T.alloc_local((1,), "uint32")
            for peer in T.unroll(splits):
                for below in T.unroll(2):
                    T.ptx["mapa.shared::cluster.u32"](
                        address[0],
                        T.cuda.cvta_generic_to_shared(shared.ptr_to([rank, row + 8 * below])),
                        T.uint32(peer),
                    )
                    T.ptx["st.shared::cluster.f32"](address[0], highest[below])
                T.ptx["mapa.shared::cluster.u32"](
                    address[0], T.cuda.cvta_generic_to_shared(arrived.ptr_to([0])), T.uint32(peer)
                )
                T.ptx["mbarrier.arrive.release.cluster.shared::cluster.b64"](address[0])
        T.cuda.mbarrier_wait_acquire_cluster(arrived.ptr_to([0]), 0)
        for below in T.unroll(2):
            highest[below] = largest([shared[peer, row + 8 * below] for peer in range(splits)])

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
    def write_tiles(
        run, weights, scores, highest, reference, state, loaded, window, place, rank, tx
    ):
        head, row0, m, first_row = T.meta_var(place)
        for turn in T.serial(own_tiles(window, rank)):
            number: T.let = rank + turn * splits
            loaded.wait(T.Select(window.is_own(number), 0, 1), 0)
            score(run, scores, state, window, number, row0, first_row, tx)
            raise_highest(scores, highest)
            for i in T.unroll(owned):
                power_of_two(scores[i], scores[i] * f32(LOG2E) - reference[i // 2 % 2])
            write(
                weights,
                scores,
                tx,
                head * m + row0 + first_row,
                window.ring_row(number),
                head * m + m,
            )

    @T.inline
    def softmax_tiles(
        run,
        weights,
        queries,
        keys,
        ring,
        barriers,
        shared,
        again,
        window,
        key_place,
        place,
        rank,
        tx,
    ):
        head, row0, m, first_row = T.meta_var(place)
        layer, slot = T.meta_var(key_place)
        loaded, arrived, decided = T.meta_var(barriers)
        state = ring.reading()
        scores = T.alloc_local((owned,), "float32")
        highest = T.alloc_local((2,), "float32")
        reference = T.alloc_local((2,), "float32")
        row = first_row + tx // 32 * 16 + tx % 32 // 4
        own_scores(
            reference,
            queries,
            keys,
            (layer, slot, window.own, window.start, head * z_head),
            row0 + row,
            m - 1,
            tx,
        )
        for below in T.unroll(2):
            highest[below] = f32(_LOWEST)
        write_tiles(
            run, weights, scores, highest, reference, state, loaded, window, place, rank, tx
        )
        exchange(highest, shared, arrived, rank, row, tx)
        for below in T.unroll(2):
            if highest[below] * f32(LOG2E) - reference[below] > f32(limit):
                reference[below] = highest[below] * f32(LOG2E)
                again[0] = 1
        decided.arrive(0)
        decided.wait(0, 0)
        if again[0] != 0:
            write_tiles(
                run, weights, scores, highest, reference, state, loaded, window, place, rank, tx
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
        shared = pool.alloc((splits, TILE_ROWS), "float32", align=16)
        again = pool.alloc((1,), "int32", align=16)
        ring = Ring(pool, stages, CONSUMERS * 4)
        loaded = TMABar(pool, 2)
        loaded.init(1)
        arrived = MBarrier(pool, 1)
        arrived.init(splits * TILE_ROWS // 2)
        decided = MBarrier(pool, 1)
        decided.init(CONSUMERS * tile.THREADS)
        pool.commit()
        barriers = T.meta_var((loaded, arrived, decided))
        # The last rows see the most keys: they begin first.
        head = T.truncmod(T.truncdiv(cta, splits), heads)
        row0 = (T.ceildiv(m, TILE_ROWS) - 1 - T.truncdiv(cta, splits * heads)) * TILE_ROWS
        slot = Slots[0]
        at = Position[slot]
        window = T.meta_var(_window(at, row0, m, chunk, _KEYS))
        base = T.cast((layer * num_slots + slot) * (2 * chunk), "int32")
        if T.cuda.thread_rank() == 0:
            again[0] = 0
        T.ptx.fence.mbarrier_init.release.cluster()
        T.cuda.cluster_sync()
        if warpgroup == CONSUMERS:
            if tx == 0:
                load_tiles(
                    q_map,
                    k_map,
                    q_tile,
                    k_ring,
                    ring,
                    barriers,
                    window,
                    (head, row0, base),
                    rank,
                    again,
                )
        else:
            run = T.meta_var(
                accumulate(ring, query_panel(q_tile), panel_of_stage(k_ring), _KEYS, dtype)
            )
            softmax_tiles(
                run,
                Weights.view(heads * m, 2 * chunk),
                Queries,
                Keys,
                ring,
                barriers,
                shared,
                again,
                window,
                (layer, slot),
                (head, row0, m, warpgroup * tile.ROWS),
                rank,
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
):
    """gated [m, E] = silu(r + bias) * (weights @ values) / sums of weights + queries[2] @ memory.

    ``projected`` [m, S+E+D] holds r from column S on, without its bias; memory is [H, zh, vh] in
    the model's dtype. Persistent CTAs take tiles of 128 rows.
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

    # CTAs at work: for 2048 rows of the 7B model, one head's tiles are one round, and the head's
    # values are read once.
    size = CTAS // across * across if across <= CTAS else CTAS

    def row_tiles(m):
        return T.truncdiv(m + TILE_ROWS - 1, TILE_ROWS)

    def number(turn, cta):
        """The CTA's ``turn``-th tile; every other turn goes backwards, so that sums even out."""
        return T.Select(turn % 2 == 0, turn * size + cta, turn * size + size - 1 - cta)

    def place(number, m):
        """Head, first row and first column in the head of a tile."""
        of_head = row_tiles(m) * across
        index = T.Bind(T.truncmod(number, of_head))
        row = T.Bind((row_tiles(m) - 1 - T.truncdiv(index, across)) * TILE_ROWS)
        return T.Bind(T.truncdiv(number, of_head)), row, T.Bind(T.truncmod(index, across) * columns)

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

    def row_sums(a_ring, totals, first_row, tx):
        """Adds up the weights of the thread's two rows, a quarter of the columns each lane."""
        pairs = a_ring.view("uint32")
        words = T.alloc_local((4,), "uint32")

        @T.inline
        def add(stage, panel):
            for below in T.unroll(2):
                row: T.let = first_row + tx // 32 * 16 + tx % 32 // 4 + 8 * below
                for part in T.unroll(2):
                    # Rows next to each other begin in different halves of the memory's banks.
                    word = T.meta_var((tx % 4 + (part + row) % 2 * 4) * 4)
                    for i in T.vectorized(4):
                        words[i] = pairs[stage, row, word + i]
                    totals[below] = totals[below] + total(
                        [tile.half_of_word(words[i], k, dtype) for i in range(4) for k in (0, 1)]
                    )
            T.cuda.warp_sync()

        return add

    @T.inline
    def load_stage(ring, state, a_ring, b_ring, a_map, a_where, b_map, b_column, b_row):
        ring.reserve(state, stage_bytes)
        load(a_ring.ptr_to([state.stage, 0, 0]), a_map, a_where, ring.barrier(state))
        for box in T.unroll(boxes):
            load(
                b_ring.ptr_to([state.stage, box, 0, 0]),
                b_map,
                (b_column + box * tile.PANEL, b_row),
                ring.barrier(state),
            )
        state.advance()

    @T.inline
    def load_tiles(maps, a_ring, b_ring, ring, position, base, m, cta):
        weights_map, values_map, queries_map, memory_map = maps
        state = ring.loading()
        turn = T.local_scalar("int32")
        turn = 0
        while number(turn, cta) < row_tiles(m) * heads * across:
            head, row0, column = T.meta_var(place(number(turn, cta), m))
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
                )
            turn = turn + 1

    @T.inline
    def apply_gate(sums, totals, projected, bias, row, column, m, tx):
        """sums *= silu(r + bias) / totals; four lanes read 16 bytes of r each and exchange."""
        for below in T.unroll(2):
            totals[below] = totals[below] + shuffle_xor(totals[below], 1)
            totals[below] = totals[below] + shuffle_xor(totals[below], 2)
            totals[below] = f32(1.0) / totals[below]
        first = row + tx // 32 * 16 + tx % 32 // 4
        words = T.alloc_local((4,), "uint32")
        for j in T.unroll(columns // 32):
            for below in T.unroll(2):
                at = T.meta_var(z_dim + column + 32 * j)
                read_words(words, projected, T.min(first + 8 * below, m - 1), at, tx)
                for i in T.unroll(4):
                    for k in T.unroll(2):
                        index = T.meta_var(16 * j + 4 * i + 2 * below + k)
                        sums[index] = (
                            sums[index]
                            * totals[below]
                            * silu(
                                tile.half_of_word(words[i], k, dtype)
                                + bias[at + 8 * i + 2 * (tx % 4) + k]
                            )
                        )

    @T.inline
    def multiply_tiles(
        gated, projected, bias, a_ring, b_ring, ring, position, m, cta, first_row, tx
    ):
        state = ring.reading()
        sums = T.alloc_local((columns // 2,), "float32")
        totals = T.alloc_local((2,), "float32")
        weights_at = T.meta_var(panel_of_stage(a_ring))
        values_at = T.meta_var(value_panels(b_ring))
        read_memory = T.meta_var(accumulate(ring, weights_at, values_at, columns, dtype, True))
        turn = T.local_scalar("int32")
        turn = 0
        while number(turn, cta) < row_tiles(m) * heads * across:
            head, row0, column = T.meta_var(place(number(turn, cta), m))
            window = T.meta_var(_window(position, row0, m, chunk, tile.PANEL))
            clear = T.meta_var(clear_unseen(b_ring, window, first_row, tx))
            add = T.meta_var(row_sums(a_ring, totals, first_row, tx))
            attend = T.meta_var(
                accumulate(ring, weights_at, values_at, columns, dtype, True, clear, add)
            )
            for below in T.unroll(2):
                totals[below] = f32(0.0)
            attend(sums, state, window.count, False, first_row, tx)
            apply_gate(
                sums, totals, projected, bias, row0 + first_row, head * v_head + column, m, tx
            )
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
        encode(values_map, Values, (value_dim, layers * num_slots * 2 * chunk), tile.PANEL)
        queries_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(queries_map, Queries, (z_dim, m, 3), TILE_ROWS)
        memory_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(memory_map, Memory, (v_head, heads * z_head), tile.PANEL)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})
        cta = T.cta_id([size])
        warpgroup = T.warpgroup_id([CONSUMERS + 1])
        tx = T.thread_id_in_wg([tile.THREADS])
        pool = T.SMEMPool()
        a_ring = pool.alloc((stages, TILE_ROWS, tile.PANEL), dtype, align=1024)
        b_ring = pool.alloc((stages, boxes, tile.PANEL, tile.PANEL), dtype, align=1024)
        ring = Ring(pool, stages, CONSUMERS * 4)
        pool.commit()
        slot = Slots[0]
        at = Position[slot]
        base = T.cast((layer * num_slots + slot) * (2 * chunk), "int32")
        T.ptx.fence.mbarrier_init.release.cluster()
        T.cuda.cta_sync()
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
                    cta,
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
                cta,
                warpgroup * tile.ROWS,
                tx,
            )

    return attention
