"""A product of few rows on tensor cores, at the speed of reading the weights once.

Weights are operand A of mma.sync m16n8k16 (16 outputs), activations operand B (8 batch rows). The
order of k within a mma is free as long as both operands agree, so four lanes copy 64 contiguous
bytes of a weight row, 16 each, and every lane later multiplies just what it copied: no barrier
stands between the memory and the tensor cores. Copies run ``depth`` blocks ahead.
"""

from __future__ import annotations

from tvm.script import tirx as T

from ...vector_math import f32, total
from ..dependent_launch import DependentLaunch
from ..tensor_core import copy_async, multiply_add
from .ending import Ending
from .plan import BLOCK, TILE, WARP, Plan

_VECTOR = 8  # elements of 16 bytes


def tensor_core_product(plan: Plan, source, ending: Ending, launch: DependentLaunch):
    """An inline (W, (inputs, others), arena, cta, tx) for the outputs of CTA ``cta`` of plan.ctas.

    ``source`` brings the activations of a chunk into shared memory. ``arena`` is dynamic shared
    memory of plan.bytes. Weights are copied before ``launch`` waits for the kernel before.
    """
    stage, copy = source.stage(plan), source.copy(plan)
    batch, outputs, dtype = plan.shape.batch, plan.shape.outputs, plan.shape.dtype
    depth, parts, chunks, splits = plan.depth, plan.parts, plan.chunks, plan.splits
    span, halves, ctas = plan.span, plan.shape.halves, plan.ctas
    items_per_thread = -(-plan.items // plan.threads)

    def weight_row(half, first, last, tile, group):
        """The weight's row in row ``group`` of the tile's lower or upper eight."""
        if plan.shape.gated:
            row = T.min(first + tile * span + group, last - 1) + half * outputs
        else:
            row = T.min(first + tile * span + half * 8 + group, last - 1)
        return T.Cast("int64", row)

    def partial(row, b):
        """Where the sum of a tile's row and batch row b stands among a warp's."""
        return (b // 8 * TILE + row) * plan.columns + b % 8

    def output_of(first, item):
        """Output and batch row of a CTA's item."""
        return first + item % (plan.tiles * span), item // (plan.tiles * span)

    @T.inline
    def copy_block(Ring, warp, lane, j, W, rows, k):
        for half in T.unroll(2):
            copy_async(
                Ring.ptr_to([warp, (j * 2 + half) * WARP * _VECTOR + lane * _VECTOR]),
                W.ptr_to([rows[half], k + j * BLOCK]),
            )

    @T.inline
    def multiply_block(Ring, warp, lane, j, Staged, buffer, k, Sums):
        weights = T.alloc_local((8,), "uint32")
        activations = T.alloc_local((4,), "uint32")
        for half in T.unroll(2):
            for i in T.vectorized(_VECTOR):
                weights.view(dtype)[half * _VECTOR + i] = Ring[
                    warp, (j * 2 + half) * WARP * _VECTOR + lane * _VECTOR + i
                ]
        for n in T.unroll(plan.column_tiles):
            for i in T.vectorized(_VECTOR):
                activations.view(dtype)[i] = Staged[
                    buffer, n * 8 + lane // 4 % plan.columns, k + j * BLOCK + i
                ]
            for pair in T.unroll(2):
                # Rows 0-7 and 8-15 of the first eight k, then of the second eight.
                multiply_add(
                    dtype,
                    Sums,
                    [n * 4 + i for i in range(4)],
                    [weights[half * 4 + pair * 2 + e] for e in range(2) for half in range(2)],
                    0,
                    activations,
                    pair * 2,
                )

    @T.inline
    def store_partials(Sums, Partial, warp, lane):
        for n in T.unroll(plan.column_tiles):
            for i in T.unroll(4):
                b: T.let = n * 8 + lane % 4 * 2 + i % 2
                if b < batch:
                    Partial[warp, partial(lane // 4 + i // 2 * 8, b)] = Sums[n * 4 + i]

    def sum_of(Partial, item, half):
        output, b = output_of(0, item)
        row = output % span + half * 8
        warps = [output // span * splits + split for split in range(splits)]
        return total([Partial[warp, partial(row, b)] for warp in warps])

    @T.inline
    def start_all(others, Start, first, last, tx):
        for i in T.unroll(items_per_thread):
            item: T.let = i * plan.threads + tx
            output: T.let = output_of(first, item)[0]
            b: T.let = output_of(first, item)[1]
            Start[i] = f32(0.0)
            if T.And(item < plan.items, output < last):
                Start[i] = ending.start(others, b, output)

    @T.inline
    def finish_all(others, Partial, Start, first, last, tx):
        sums = T.alloc_local((halves,), "float32")
        for i in T.unroll(items_per_thread):
            item: T.let = i * plan.threads + tx
            output: T.let = output_of(first, item)[0]
            b: T.let = output_of(first, item)[1]
            if T.And(item < plan.items, output < last):
                for half in T.unroll(halves):
                    sums[half] = sum_of(Partial, item, half)
                sums[0] = sums[0] + Start[i]
                ending.finish(others, [sums[half] for half in range(halves)], b, output)

    @T.inline
    def copy_nothing(inputs, Staged, chunk, tx):
        T.evaluate(0)

    @T.inline
    def copy_next_chunk(inputs, Staged, chunk, tx):
        # The other buffer is free since the barrier that ended the last chunk, and full before
        # the one that ends this chunk: at least two parts lie between.
        if chunk > 0:
            T.tvm_storage_sync("shared")
        if chunk + 1 < chunks:
            copy(inputs, Staged, (chunk + 1) % 2, (chunk + 1) * plan.chunk, tx)

    copy_ahead = copy_nothing if chunks == 1 else copy_next_chunk

    @T.inline
    def product(W, operands, arena, cta, tx):
        Ring = T.decl_buffer(
            (plan.warps, plan.warp_bytes // 2), dtype, data=arena.data, scope="shared.dyn"
        )
        # A warp's sums take the place of its weights.
        Partial = T.decl_buffer(
            (plan.warps, plan.warp_bytes // 4), "float32", data=arena.data, scope="shared.dyn"
        )
        Staged = T.decl_buffer(
            (plan.buffers, batch, plan.stride),
            dtype,
            data=arena.data,
            scope="shared.dyn",
            byte_offset=plan.warps * plan.warp_bytes,
        )
        First = T.decl_buffer(
            (batch, plan.stride),
            dtype,
            data=arena.data,
            scope="shared.dyn",
            byte_offset=plan.warps * plan.warp_bytes,
        )
        sums = T.alloc_local((4 * plan.column_tiles,), "float32")
        starts = T.alloc_local((items_per_thread,), "float32")
        rows = T.alloc_local((2,), "int64")
        first: T.let = outputs * cta // ctas
        last: T.let = outputs * (cta + 1) // ctas
        warp: T.let = tx // WARP
        lane: T.let = tx % WARP
        k: T.let = warp % splits * plan.slice + lane % 4 * _VECTOR

        for half in T.unroll(2):
            rows[half] = weight_row(half, first, last, warp // splits, lane // 4)
        for j in T.unroll(depth):
            copy_block(Ring, warp, lane, j, W, rows, k)
            T.ptx["cp.async.commit_group"]()
        for i in T.unroll(4 * plan.column_tiles):
            sums[i] = f32(0.0)
        launch.wait()
        start_all(operands[1], starts, first, last, tx)
        stage(operands[0], First, tx)
        T.tvm_storage_sync("shared")
        for chunk in T.serial(chunks):
            copy_ahead(operands[0], Staged, chunk, tx)
            for part in T.serial(parts):
                at: T.let = k + part * (depth * BLOCK)
                next_at: T.let = T.Select(
                    part + 1 < parts,
                    chunk * plan.chunk + at + depth * BLOCK,
                    (chunk + 1) * plan.chunk + k,
                )
                for j in T.unroll(depth):
                    T.ptx["cp.async.wait_group"](depth - 1)
                    multiply_block(Ring, warp, lane, j, Staged, chunk % 2, at, sums)
                    if T.Or(part + 1 < parts, chunk + 1 < chunks):
                        copy_block(Ring, warp, lane, j, W, rows, next_at)
                    T.ptx["cp.async.commit_group"]()
        T.cuda.warp_sync()  # all lanes are done with the weights that the sums replace
        store_partials(sums, Partial, warp, lane)
        T.tvm_storage_sync("shared")
        finish_all(operands[1], Partial, starts, first, last, tx)

    return product
