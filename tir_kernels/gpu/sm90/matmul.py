"""Matrix product out[m, n] = sum_k a[m, k] w[n, k] on Hopper's tensor cores.

One CTA a multiprocessor goes over tiles of 128 x ``columns``. One warpgroup loads panels of 64 of
the depth into a ring in shared memory, two multiply 64 rows each. Clusters of two CTAs work on
tiles below each other, so that each loads half of the weights that both need.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from . import tile
from .pipeline import Ring, accumulate, encode, load, panel_of_stage

# Multiprocessors of an H100 or H200 (SXM); a persistent CTA for each.
CTAS = 132
CONSUMERS = 2
TILE_ROWS = tile.ROWS * CONSUMERS
# Registers of a thread that loads and of one that multiplies (384 threads share 65536).
LOADER_REGISTERS, CONSUMER_REGISTERS = 56, 224


def supports(inputs: int, outputs: int, dtype: str) -> bool:
    """Whether ``matmul`` takes this shape: whole panels of the depth, 16-byte pieces of a row."""
    return dtype in ("float16", "bfloat16") and inputs % tile.PANEL == 0 and outputs % 8 == 0


@functools.cache
def matmul(
    inputs: int,
    outputs: int,
    dtype: str,
    out_dtype: str,
    columns: int = 256,
    stages: int = 4,
    cluster: int = 2,
):
    """a [m, K] and w [N, K] to out [m, N]; sums are float32."""
    panels = inputs // tile.PANEL
    column_tiles = -(-outputs // columns)
    share = columns // cluster
    stage_bytes = (TILE_ROWS + columns) * tile.PANEL * 2
    clusters = CTAS // cluster
    write = tile.store(columns, out_dtype, outputs)

    def row_tiles(m):
        """Tiles of a cluster below each other."""
        return T.truncdiv(m + TILE_ROWS * cluster - 1, TILE_ROWS * cluster)

    def turns(m, group):
        """How many tiles the cluster ``group`` computes."""
        return T.truncdiv(row_tiles(m) * column_tiles + clusters - 1 - group, clusters)

    def tile_row(number, m, rank):
        return (T.truncmod(number, row_tiles(m)) * cluster + rank) * TILE_ROWS

    def tile_column(number, m):
        return T.truncdiv(number, row_tiles(m)) * columns

    @T.inline
    def load_tiles(a_map, w_map, a_ring, w_ring, ring, m, group, rank):
        state = ring.loading()
        for turn in T.serial(turns(m, group)):
            row = tile_row(group + turn * clusters, m, rank)
            column = tile_column(group + turn * clusters, m) + rank * share
            for panel in T.serial(panels):
                ring.reserve(state, stage_bytes)
                load(
                    a_ring.ptr_to([state.stage, 0, 0]),
                    a_map,
                    (panel * tile.PANEL, row),
                    ring.barrier(state),
                )
                load(
                    w_ring.ptr_to([state.stage, rank * share, 0]),
                    w_map,
                    (panel * tile.PANEL, column),
                    ring.barrier(state),
                    cluster,
                )
                state.advance()

    @T.inline
    def multiply_tiles(out, a_ring, w_ring, ring, m, group, rank, first_row, tx):
        state = ring.reading()
        sums = T.alloc_local((columns // 2,), "float32")

        run = T.meta_var(
            accumulate(ring, panel_of_stage(a_ring), panel_of_stage(w_ring), columns, dtype)
        )
        for turn in T.serial(turns(m, group)):
            run(sums, state, panels, False, first_row, tx)
            write(
                out,
                sums,
                tx,
                tile_row(group + turn * clusters, m, rank) + first_row,
                tile_column(group + turn * clusters, m),
                m,
            )

    @T.prim_func(private=True)
    def matmul(a: T.handle, w: T.handle, out: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), dtype)
        W = T.match_buffer(w, (outputs, inputs), dtype)
        Out = T.match_buffer(out, (m, outputs), out_dtype)
        a_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(a_map, A, (inputs, m), TILE_ROWS)
        w_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
        encode(w_map, W, (inputs, outputs), share)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 1})
        rank = T.cta_id_in_cluster([cluster])
        cta = T.cta_id([CTAS])
        warpgroup = T.warpgroup_id([CONSUMERS + 1])
        tx = T.thread_id_in_wg([tile.THREADS])
        pool = T.SMEMPool()
        a_ring = pool.alloc((stages, TILE_ROWS, tile.PANEL), dtype, align=1024)
        w_ring = pool.alloc((stages, columns, tile.PANEL), dtype, align=1024)
        ring = Ring(pool, stages, CONSUMERS * 4, cluster)
        pool.commit()
        T.ptx.fence.mbarrier_init.release.cluster()
        T.cuda.cluster_sync()
        if warpgroup == CONSUMERS:
            T.ptx.setmaxnreg.dec.sync.aligned.u32(LOADER_REGISTERS)
            if tx == 0:
                load_tiles(a_map, w_map, a_ring, w_ring, ring, m, cta // cluster, rank)
        else:
            T.ptx.setmaxnreg.inc.sync.aligned.u32(CONSUMER_REGISTERS)
            multiply_tiles(
                Out, a_ring, w_ring, ring, m, cta // cluster, rank, warpgroup * tile.ROWS, tx
            )
        # No CTA may leave while the other can still arrive at its barriers.
        T.cuda.cluster_sync()

    return matmul
