"""Matrix product out[m, n] = sum_k a[m, k] w[n, k] on Hopper's tensor cores.

One CTA a multiprocessor goes over tiles of the product. One of its warpgroups loads panels of 64 of
the depth into a ring in shared memory, two multiply 64 rows each.
"""

from __future__ import annotations

import dataclasses
import functools

from tvm.script import tirx as T

from ..elementary import silu
from . import tile
from .pipeline import Ring, accumulate, encode, load, panel_of_stage

# Multiprocessors of an H100 or H200 (SXM); a persistent CTA for each.
CTAS = 132
CLUSTER = 2
CONSUMERS = 2
TILE_ROWS = tile.ROWS * CONSUMERS
# Registers of a thread that loads and of one that multiplies (384 threads share 65536).
LOADER_REGISTERS, CONSUMER_REGISTERS = 56, 224
# Boxes that bring a tile's weights: the CTAs of a cluster share them out.
_BOXES = 2
# Rows that are not there cost as much as others when a box is loaded, and small boxes cost more
# than large ones: up to _FEW_ROWS of a come in boxes of _SMALL_BOX, more in one box a tile.
_SMALL_BOX, _FEW_ROWS = 16, 64


def supports(inputs: int, outputs: int, dtype: str) -> bool:
    """Whether ``matmul`` takes this shape: whole panels of the depth, 16-byte pieces of a row."""
    return dtype in ("float16", "bfloat16") and inputs % tile.PANEL == 0 and outputs % 8 == 0


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of 128 x ``columns`` weights, through a ring of ``stages``.

    The CTAs of a ``cluster`` of two have tiles below each other and load half of the weights each.
    """

    columns: int
    stages: int
    cluster: int

    @property
    def share(self) -> int:
        """Weights of a box."""
        return self.columns // _BOXES

    def row_tiles(self, m):
        """Tiles of a cluster below each other."""
        rows = TILE_ROWS * self.cluster
        return T.truncdiv(m + rows - 1, rows)

    def count(self, m, weights: int):
        """Tiles of a cluster."""
        return self.row_tiles(m) * -(-weights // self.columns)

    def turns(self, m, weights: int, cta):
        """How many of them fall to one cluster."""
        clusters = CTAS // self.cluster
        return T.truncdiv(self.count(m, weights) + clusters - 1 - cta // self.cluster, clusters)

    def cost(self, m, weights: int):
        """How long the product takes: columns of the CTA with the most, 16 more for each end."""
        return self.turns(m, weights, 0) * (self.columns + 16)

    def place(self, turn, m, cta, rank):
        """First row and first weight of a CTA's tile in its cluster's ``turn``-th."""
        number = cta // self.cluster + turn * (CTAS // self.cluster)
        above = T.truncmod(number, self.row_tiles(m)) * self.cluster
        row = (above + (rank if self.cluster > 1 else 0)) * TILE_ROWS
        return row, T.truncdiv(number, self.row_tiles(m)) * self.columns


def _roles(inputs, weights, dtype, out_dtype, tiles: Tiles, gated: bool):
    """Inlines for the warpgroup that loads and for one that multiplies.

    ``weights`` is the number of rows of w, of which those of both halves meet when ``gated``.
    """
    panels = inputs // tile.PANEL
    columns, cluster = tiles.columns, tiles.cluster
    share = tiles.share
    row_bytes = tile.PANEL * 2
    outputs = weights // 2 if gated else weights
    apart = outputs if gated else share
    write = tile.store(share if gated else columns, out_dtype, outputs)

    def first_output(first_weight):
        return first_weight // 2 if gated else first_weight

    @T.inline
    def apply_gate(sums):
        for i in T.unroll(columns // 4):
            sums[i] = silu(sums[i]) * sums[columns // 4 + i]

    @T.inline
    def keep(sums):
        T.evaluate(0)

    finish = apply_gate if gated else keep

    @T.inline
    def load_tiles(buffers, a_maps, w_map, m, cta, rank):
        a_ring, w_ring, ring = T.meta_var(buffers)
        large_boxes, small_boxes = T.meta_var(a_maps)
        state = ring.loading()
        for turn in T.serial(tiles.turns(m, weights, cta)):
            row, first = T.meta_var(tiles.place(turn, m, cta, rank))
            filled: T.let = T.truncdiv(m + _SMALL_BOX - 1, _SMALL_BOX)
            rows: T.let = T.Select(m > _FEW_ROWS, TILE_ROWS, filled * _SMALL_BOX)
            for panel in T.serial(panels):
                ring.reserve(state, (rows + columns) * row_bytes)
                if m > _FEW_ROWS:
                    load(
                        a_ring.ptr_to([state.stage, 0, 0]),
                        large_boxes,
                        (panel * tile.PANEL, row),
                        ring.barrier(state),
                    )
                else:
                    for box in T.serial(filled):
                        load(
                            a_ring.ptr_to([state.stage, box * _SMALL_BOX, 0]),
                            small_boxes,
                            (panel * tile.PANEL, row + box * _SMALL_BOX),
                            ring.barrier(state),
                        )
                for i in T.unroll(_BOXES // cluster):
                    box = T.meta_var(rank if cluster > 1 else i)
                    load(
                        w_ring.ptr_to([state.stage, box * share, 0]),
                        w_map,
                        (panel * tile.PANEL, first_output(first) + box * apart),
                        ring.barrier(state),
                        cluster,
                    )
                state.advance()

    @T.inline
    def multiply_tiles(buffers, out, m, cta, rank, first_row, tx):
        a_ring, w_ring, ring = T.meta_var(buffers)
        state = ring.reading()
        sums = T.alloc_local((columns // 2,), "float32")
        run = T.meta_var(
            accumulate(ring, panel_of_stage(a_ring), panel_of_stage(w_ring), columns, dtype)
        )
        for turn in T.serial(tiles.turns(m, weights, cta)):
            row, first = T.meta_var(tiles.place(turn, m, cta, rank))
            run(sums, state, panels, False, first_row, tx)
            finish(sums)
            write(out, sums, tx, row + first_row, first_output(first), m)

    return load_tiles, multiply_tiles


def _rings(pool, dtype: str, kinds: tuple[Tiles, ...]) -> list:
    """Buffers and barriers of each kind of tiles; the buffers lie over one another."""
    buffers, end = [], 0
    for tiles in kinds:
        pool.move_base_to(0)
        a_ring = pool.alloc((tiles.stages, TILE_ROWS, tile.PANEL), dtype, align=1024)
        w_ring = pool.alloc((tiles.stages, tiles.columns, tile.PANEL), dtype, align=1024)
        buffers.append((a_ring, w_ring))
        end = max(end, pool.offset)
    pool.move_base_to(end)
    return [
        (*pair, Ring(pool, tiles.stages, CONSUMERS * 4, tiles.cluster))
        for pair, tiles in zip(buffers, kinds, strict=True)
    ]


def _kernel(inputs, weights, dtype, out_dtype, kinds: tuple[Tiles, Tiles, Tiles], gated: bool):
    wide, middle, narrow = kinds
    load_wide, multiply_wide = _roles(inputs, weights, dtype, out_dtype, wide, gated)
    load_middle, multiply_middle = _roles(inputs, weights, dtype, out_dtype, middle, gated)
    load_narrow, multiply_narrow = _roles(inputs, weights, dtype, out_dtype, narrow, gated)
    outputs = weights // 2 if gated else weights

    def best(m, kind: Tiles, others: tuple[Tiles, ...]):
        costs = [other.cost(m, weights) for other in others]
        return kind.cost(m, weights) <= functools.reduce(T.min, costs)

    @T.prim_func(private=True)
    def matmul(a: T.handle, w: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), dtype)
        W = T.match_buffer(w, (weights, inputs), dtype)
        Out = T.match_buffer(out, (m, outputs), out_dtype)
        a_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(a_map, A, (inputs, m), TILE_ROWS)
        small_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(small_map, A, (inputs, m), _SMALL_BOX)
        wide_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(wide_map, W, (inputs, weights), wide.share)
        middle_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(middle_map, W, (inputs, weights), middle.share)
        narrow_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(narrow_map, W, (inputs, weights), narrow.share)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})
        rank = T.cta_id_in_cluster([CLUSTER])
        cta = T.cta_id([CTAS])
        warpgroup = T.warpgroup_id([CONSUMERS + 1])
        tx = T.thread_id_in_wg([tile.THREADS])
        pool = T.SMEMPool()
        wide_ring, middle_ring, narrow_ring = T.meta_var(_rings(pool, dtype, kinds))
        pool.commit()
        T.ptx.fence.mbarrier_init.release.cluster()
        T.cuda.cluster_sync()
        a_maps = T.meta_var((a_map, small_map))
        take_wide: T.let = best(m, wide, (middle, narrow))
        take_middle: T.let = best(m, middle, (narrow,))
        if warpgroup == CONSUMERS:
            T.ptx.setmaxnreg.dec.sync.aligned.u32(LOADER_REGISTERS)
            if tx == 0:
                if take_wide:
                    load_wide(wide_ring, a_maps, wide_map, m, cta, rank)
                else:
                    if take_middle:
                        load_middle(middle_ring, a_maps, middle_map, m, cta, rank)
                    else:
                        load_narrow(narrow_ring, a_maps, narrow_map, m, cta, rank)
        else:
            T.ptx.setmaxnreg.inc.sync.aligned.u32(CONSUMER_REGISTERS)
            first_row = warpgroup * tile.ROWS
            if take_wide:
                multiply_wide(wide_ring, Out, m, cta, rank, first_row, tx)
            else:
                if take_middle:
                    multiply_middle(middle_ring, Out, m, cta, rank, first_row, tx)
                else:
                    multiply_narrow(narrow_ring, Out, m, cta, rank, first_row, tx)
        # No CTA may leave while the other can still arrive at its barriers.
        T.cuda.cluster_sync()

    return matmul


def _kinds(weights: int, gated: bool) -> tuple[Tiles, Tiles, Tiles]:
    """Tiles for many rows, 256 wide unless others leave fewer CTAs idle at the end of a product of
    2048 rows, and narrower ones, so that with few rows all multiprocessors have some.
    """
    rows, clusters = 2048 // (TILE_ROWS * CLUSTER), CTAS // CLUSTER

    def cost(columns: int) -> float:
        turns = -(-rows * -(-weights // columns) // clusters)
        return turns * (columns + 16) * (1.0 if columns == 256 else 1.02)

    columns = min(range(256, 192, -32 if gated else -16), key=cost)
    return Tiles(columns, 4, CLUSTER), Tiles(128, 6, 1), Tiles(64, 8, 1)


@functools.cache
def matmul(
    inputs: int,
    outputs: int,
    dtype: str,
    out_dtype: str,
    kinds: tuple[Tiles, Tiles, Tiles] | None = None,
):
    """a [m, K] and w [N, K] to out [m, N]; sums are float32."""
    return _kernel(inputs, outputs, dtype, out_dtype, kinds or _kinds(outputs, False), False)


@functools.cache
def gated_matmul(
    inputs: int, hidden: int, dtype: str, kinds: tuple[Tiles, Tiles, Tiles] | None = None
):
    """a [m, K] and w [2F, K] to out [m, F] = silu(a w[:F]^T) * (a w[F:]^T), all in float32."""
    kinds = kinds or _kinds(2 * hidden, True)
    return _kernel(inputs, 2 * hidden, dtype, dtype, kinds, True)
