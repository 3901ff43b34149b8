"""A product of few rows on tensor cores, at the speed of reading the weights once.

Weights are operand A of mma.sync m16n8k16 (16 outputs), activations operand B (8 batch rows). The
order of k within a mma is free as long as both operands agree, so four lanes copy 64 contiguous
bytes of a weight row, 16 each, and every lane later multiplies just what it copied: no barrier
stands between the memory and the tensor cores. Copies run ``depth`` blocks ahead, across tiles
and while partial sums are added up.
"""

from __future__ import annotations

from tvm.script import tirx as T

from ...vector_math import f32, total
from ..tensor_core import copy_async, multiply_add
from .plan import BLOCK, TILE, WARP, Plan

_VECTOR = 8  # elements of 16 bytes


def tensor_core_product(plan: Plan, stage, finish):
    """An inline (W, (inputs, others), arena, cta, tx) for the outputs of CTA ``cta`` of plan.ctas.

    ``stage(inputs, Staged, first, tx)`` writes activations first to first + plan.chunk into
    Staged [batch, stride]; ``finish(others, sums, b, output)`` takes an output's sum, or its
    pair of them if gated. ``arena`` is dynamic shared memory.
    """
    batch, outputs, dtype = plan.shape.batch, plan.shape.outputs, plan.shape.dtype
    depth, parts, chunks, splits = plan.depth, plan.parts, plan.chunks, plan.splits
    span, halves, ctas = plan.span, plan.halves, plan.ctas
    items = plan.row_tiles * span * batch
    part_size = depth * BLOCK

    def weight_row(half, first, last, tile, group):
        """The weight's row in row ``group`` of the tile's lower or upper eight."""
        if plan.shape.gated:
            row = T.min(first + tile * span + group, last - 1) + half * outputs
        else:
            row = T.min(first + tile * span + half * 8 + group, last - 1)
        return T.Cast("int64", row)

    def chunk_and_round(unit, rounds):
        return (0, unit) if chunks == 1 else (unit // rounds, unit % rounds)

    def partial(row, b):
        """Where the sum of a tile's row and batch row b stands among a warp's."""
        return (b // 8 * TILE + row) * plan.columns + b % 8

    @T.inline
    def copy_block(Ring, warp, lane, j, W, rows, k):
        for half in T.unroll(2):
            copy_async(Ring.ptr_to([warp, j, half, lane, 0]), W.ptr_to([rows[half], k + j * BLOCK]))

    @T.inline
    def multiply_block(Ring, warp, lane, j, Staged, k, Sums):
        weights = T.alloc_local((8,), "uint32")
        activations = T.alloc_local((4,), "uint32")
        for half in T.unroll(2):
            for i in T.vectorized(_VECTOR):
                weights.view(dtype)[half * _VECTOR + i] = Ring[warp, j, half, lane, i]
        for n in T.unroll(plan.column_tiles):
            for i in T.vectorized(_VECTOR):
                activations.view(dtype)[i] = Staged[
                    n * 8 + lane // 4 % plan.columns, k + j * BLOCK + i
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
    def store_partials(Sums, Partial, buffer, warp, lane):
        for n in T.unroll(plan.column_tiles):
            for i in T.unroll(4):
                b: T.let = n * 8 + lane % 4 * 2 + i % 2
                if b < batch:
                    Partial[buffer, warp, partial(lane // 4 + i // 2 * 8, b)] = Sums[n * 4 + i]
        for i in T.unroll(4 * plan.column_tiles):
            Sums[i] = f32(0.0)

    def sum_of(Partial, buffer, tile, row, b):
        warps = [tile * splits + split for split in range(splits)]
        return total([Partial[buffer, warp, partial(row, b)] for warp in warps])

    @T.inline
    def keep_nothing(Kept, sums, chunk, item):
        T.evaluate(0)

    @T.inline
    def keep_chunks(Kept, sums, chunk, item):
        for half in T.unroll(halves):
            if chunk > 0:
                sums[half] = sums[half] + Kept[item, half]
            Kept[item, half] = sums[half]

    keep = keep_nothing if chunks == 1 else keep_chunks

    @T.inline
    def add_up(others, Partial, Kept, buffer, chunk, round, first, last, tx):
        sums = T.alloc_local((halves,), "float32")
        for i in T.serial(-(-items // plan.threads)):
            item: T.let = i * plan.threads + tx
            tile: T.let = item // (span * batch)
            b: T.let = item // span % batch
            output: T.let = first + (round * plan.row_tiles + tile) * span + item % span
            if item < items:
                for half in T.unroll(halves):
                    sums[half] = sum_of(Partial, buffer, tile, item % span + half * 8, b)
                keep(Kept, sums, chunk, round * items + item)
                if T.And(chunk == chunks - 1, output < last):
                    finish(others, [sums[half] for half in range(halves)], b, output)

    @T.inline
    def stage_only_chunk(inputs, Staged, chunk, round, tx):
        T.evaluate(0)

    @T.inline
    def stage_next_chunk(inputs, Staged, chunk, round, tx):
        if T.And(chunk > 0, round == 0):
            stage(inputs, Staged, chunk * plan.chunk, tx)
            T.tvm_storage_sync("shared")

    stage_next = stage_only_chunk if chunks == 1 else stage_next_chunk

    @T.inline
    def nothing():
        T.evaluate(0)

    @T.inline
    def wait_for_inputs():
        T.ptx.griddepcontrol.wait()

    @T.inline
    def let_next_start():
        T.ptx.griddepcontrol.launch_dependents()

    before_weights = let_next_start if plan.dependent else nothing
    before_activations = wait_for_inputs if plan.dependent else nothing

    @T.inline
    def product(W, operands, arena, cta, tx):
        Ring = T.decl_buffer(
            (plan.warps, depth, 2, WARP, _VECTOR), dtype, data=arena.data, scope="shared.dyn"
        )
        Partial = T.decl_buffer(
            (2, plan.warps, TILE * batch),
            "float32",
            data=arena.data,
            scope="shared.dyn",
            byte_offset=plan.weight_bytes,
        )
        Staged = T.decl_buffer(
            (batch, plan.stride),
            dtype,
            data=arena.data,
            scope="shared.dyn",
            byte_offset=plan.weight_bytes + plan.partial_bytes,
        )
        Kept = T.decl_buffer(
            (plan.rounds * items, halves),
            "float32",
            data=arena.data,
            scope="shared.dyn",
            byte_offset=plan.weight_bytes + plan.partial_bytes + plan.staged_bytes,
        )
        sums = T.alloc_local((4 * plan.column_tiles,), "float32")
        rows = T.alloc_local((2,), "int64")
        first: T.let = outputs * cta // ctas
        last: T.let = outputs * (cta + 1) // ctas
        rounds: T.let = (last - first + (span * plan.row_tiles - 1)) // (span * plan.row_tiles)
        units: T.let = chunks * rounds
        warp: T.let = tx // WARP
        lane: T.let = tx % WARP
        k: T.let = warp % splits * plan.slice + lane % 4 * _VECTOR

        before_weights()
        for half in T.unroll(2):
            rows[half] = weight_row(half, first, last, warp // splits, lane // 4)
        for j in T.unroll(depth):
            copy_block(Ring, warp, lane, j, W, rows, k)
            T.ptx["cp.async.commit_group"]()
        for i in T.unroll(4 * plan.column_tiles):
            sums[i] = f32(0.0)
        before_activations()
        stage(operands[0], Staged, 0, tx)
        T.tvm_storage_sync("shared")
        for unit in T.serial(units):
            chunk: T.let = chunk_and_round(unit, rounds)[0]
            round: T.let = chunk_and_round(unit, rounds)[1]
            next_chunk: T.let = chunk_and_round(unit + 1, rounds)[0]
            next_round: T.let = chunk_and_round(unit + 1, rounds)[1]
            stage_next(operands[0], Staged, chunk, round, tx)
            for part in T.serial(parts):
                if part == parts - 1:
                    for half in T.unroll(2):
                        tile: T.let = next_round * plan.row_tiles + warp // splits
                        rows[half] = weight_row(half, first, last, tile, lane // 4)
                ahead: T.let = T.Select(
                    part == parts - 1,
                    next_chunk * plan.chunk,
                    chunk * plan.chunk + (part + 1) * part_size,
                )
                for j in T.unroll(depth):
                    T.ptx["cp.async.wait_group"](depth - 1)
                    multiply_block(Ring, warp, lane, j, Staged, k + part * part_size, sums)
                    if T.Or(part < parts - 1, unit + 1 < units):
                        copy_block(Ring, warp, lane, j, W, rows, k + ahead)
                    T.ptx["cp.async.commit_group"]()
            store_partials(sums, Partial, unit % 2, warp, lane)
            T.tvm_storage_sync("shared")
            add_up(operands[1], Partial, Kept, unit % 2, chunk, round, first, last, tx)

    return product
