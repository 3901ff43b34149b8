"""A product of few rows on a Vulkan device's matrix units, for eight sequences and more.

A warp multiplies 16 rows of the weights, or, where there are few of them, a part of their inputs.
Its weights are on their way in registers, in coalesced loads, and pass through a piece of shared
memory that is the warp's own into matrices; activations are brought into shared memory for all
warps, a chunk of inputs at a time. Matrices of weights are left operands (16 outputs), those of
activations right ones (16 batch rows; what is multiplied with rows that are none goes nowhere).
"""

from __future__ import annotations

import dataclasses

from tvm.script import tirx as T

from ...vector_math import f32, total
from ..cooperative import (
    PART,
    SIZE,
    WORDS,
    clear_sums,
    load_left,
    load_right,
    multiply_add,
    store_sums,
    words,
)
from ..reduce import WARP
from ..tensor_core import CHUNK
from ..unit import GpuUnit
from .ending import Ending
from .plan import BLOCK, TILE, Shape

_LEAST_BATCH = 8
# A warp's weights in shared memory: words from row to row, and in all. Rows are padded, as sums and
# activations are: eight of them then lie in different banks.
_TILE_STRIDE = BLOCK // 2 + WORDS
_TILE_WORDS = TILE * _TILE_STRIDE
# Lanes that load a row of a block, and vectors of a lane that make up a block.
_ROW_LANES = BLOCK // CHUNK
_BLOCK_VECTORS = TILE * _ROW_LANES // WARP


@dataclasses.dataclass(frozen=True)
class CooperativePlan:
    """Which outputs, inputs and loads are whose; ``multiprocessors`` are to be kept busy.

    ``small`` CTAs are two for a multiprocessor. All have ``least_tiles`` tiles at least.
    """

    shape: Shape
    unit: GpuUnit
    multiprocessors: int
    small: bool
    least_tiles: int = 1

    @property
    def across(self) -> int:
        """Matrices of activations side by side."""
        return -(-self.shape.batch // SIZE)

    @property
    def stages(self) -> int:
        """Blocks of weights that a warp has room for in shared memory.

        Two save a barrier for each block; with two halves of a block that did not pay (on an H200).
        """
        return 2 if self.small and not self.shape.gated else 1

    @property
    def all_tiles(self) -> int:
        return -(-self.shape.outputs // TILE)

    @property
    def strip_stride(self) -> int:
        """Words from a row of a warp's sums to the next."""
        return self.across * SIZE + WORDS

    @property
    def strip(self) -> int:
        """Words of a warp's sums."""
        return TILE * self.strip_stride

    @property
    def _most_warps(self) -> int:
        warps = self.unit.cta(256 if self.small else 512) // WARP
        return next(n for n in range(warps, 0, -1) if self._fits(n, 1, 1))

    @property
    def ctas(self) -> int:
        """As many as multiprocessors, or a multiple of that."""
        least = self.multiprocessors * (2 if self.small else 1)
        return min(self.all_tiles, least * -(-self.all_tiles // (least * self._most_warps)))

    @property
    def tiles(self) -> int:
        """Tiles of a CTA at most."""
        return max(self.least_tiles, -(-self.all_tiles // self.ctas))

    @property
    def _blocks(self) -> int:
        return self.shape.inputs // BLOCK

    @property
    def splits(self) -> int:
        """Warps that share the inputs of a tile."""
        most = max(1, self._most_warps // self.tiles)
        return next(
            n
            for n in range(most, 0, -1)
            if self._blocks % n == 0 and self._fits(n * self.tiles, n, 1)
        )

    @property
    def warps(self) -> int:
        return self.tiles * self.splits

    @property
    def threads(self) -> int:
        return WARP * self.warps

    @property
    def items(self) -> int:
        """Outputs of a CTA, of all rows of the batch."""
        return self.tiles * TILE * self.shape.batch

    @property
    def _most_blocks(self) -> int:
        """Blocks of inputs that a warp may have on their way, beside its sums in registers."""
        vectors = 8 if self.shape.halves * self.across < 4 else 4
        return max(1, vectors // (_BLOCK_VECTORS * self.shape.halves))

    @property
    def slice(self) -> int:
        """Blocks of a chunk that one warp takes."""
        own = self._blocks // self.splits
        return next(
            n
            for n in range(self._most_blocks, 0, -1)
            if own % n == 0 and self._fits(self.warps, self.splits, n)
        )

    @property
    def chunk(self) -> int:
        """Inputs of a chunk."""
        return self.slice * self.splits * BLOCK

    @property
    def chunks(self) -> int:
        return self.shape.inputs // self.chunk

    @property
    def together(self) -> int:
        """Chunks of which a warp has the weights on their way at once."""
        most = max(1, self._most_blocks // self.slice)
        return next(n for n in range(most, 0, -1) if self.chunks % n == 0)

    @property
    def stride(self) -> int:
        """Words from a row of activations in shared memory to the next."""
        return self.chunk // 2 + WORDS

    @property
    def weights(self) -> int:
        """The word of shared memory where the weights of the first warp begin."""
        return self.across * SIZE * self.stride

    @property
    def words(self) -> int:
        """Of shared memory: a chunk of activations and weights, afterwards sums."""
        return max(self.weights + self.warps * self.stages * _TILE_WORDS, self.warps * self.strip)

    def _fits(self, warps: int, splits: int, blocks: int) -> bool:
        activations = self.across * SIZE * (splits * blocks * BLOCK // 2 + WORDS)
        most = max(activations + warps * self.stages * _TILE_WORDS, warps * self.strip)
        return 4 * most <= self.unit.shared


def takes(batch: int, inputs: int, dtype: str, unit: GpuUnit) -> bool:
    """Whether matrix units take weights of that type with so many inputs, for so many rows."""
    return (
        unit.tensor_cores == "cooperative"
        and batch >= _LEAST_BATCH
        and dtype != "float32"
        and inputs % BLOCK == 0
    )


def serves(shape: Shape, unit: GpuUnit) -> bool:
    """Whether matrix units can serve the shape."""
    return takes(shape.batch, shape.inputs, shape.dtype, unit) and shape.outputs >= TILE


def small(shape: Shape, multiprocessors: int) -> bool:
    """Whether small CTAs are better: they keep multiprocessors busier (on an H200).

    Each CTA reads all activations: all of them should not read more of those than of weights.
    """
    return 2 * multiprocessors * shape.batch <= shape.outputs * shape.halves


def cooperative_product(plan: CooperativePlan, ending: Ending):
    """An inline (W, (inputs, others), arena, cta, tx) for the outputs of CTA ``cta`` of plan.ctas.

    ``inputs`` are (X [batch, inputs],) of the weights' type, ``arena`` plan.words of shared memory.
    """
    shape, dtype, batch = plan.shape, plan.shape.dtype, plan.shape.batch
    threads, tiles, splits, halves = plan.threads, plan.tiles, plan.splits, shape.halves
    across, own, together = plan.across, plan.slice, plan.together
    stride, strip_stride = plan.stride, plan.strip_stride
    turns = plan.chunks // together
    vectors = plan.chunk // CHUNK  # of a row of activations
    loads = -(-batch * vectors // threads)
    items_per_thread = -(-plan.items // threads)
    matrices = BLOCK // SIZE

    def first_tile(cta):
        return plan.all_tiles * cta // plan.ctas

    def first_output(tile):
        """The outputs of the last tile may begin in the one before, which alone writes them."""
        return T.min(tile * TILE, shape.outputs - TILE)

    def weight_row(tile, half, i, lane):
        """The weight's row of which a lane has a vector, the i-th of a block."""
        output = first_output(T.min(tile, plan.all_tiles - 1))
        row = output + half * shape.outputs + i * (WARP // _ROW_LANES) + lane // _ROW_LANES
        return T.Cast("int64", row)

    def own_tile(warp, j):
        """Where a warp's weights of a block lie."""
        return plan.weights + (warp * plan.stages + j % plan.stages) * _TILE_WORDS

    def place(item):
        """Tile of an item, counted from the CTA's first, row in it, and batch row."""
        return item % (tiles * TILE) // TILE, item % TILE, item // (tiles * TILE)

    def output_of(cta, item):
        """An item's output, and whether it is this CTA's."""
        number, row, _ = place(item)
        tile = first_tile(cta) + number
        output = first_output(tile) + row
        inside = T.And(item < plan.items, tile < first_tile(cta + 1))
        return output, T.And(inside, output >= tile * TILE)

    def sum_of(arena, item):
        tile, row, b = place(item)
        base = tile * splits * plan.strip + row * strip_stride + b
        return total(
            [T.reinterpret("float32", arena[base + split * plan.strip]) for split in range(splits)]
        )

    @T.inline
    def fetch(X, following, number, tx):
        """The activations of a chunk into registers."""
        for i in T.unroll(loads):
            item = T.meta_var(i * threads + tx)
            if item < batch * vectors:
                at = T.meta_var(number * plan.chunk + item % vectors * CHUNK)
                following[T.Ramp(i * WORDS, 1, WORDS)] = words(X, [item // vectors, at])

    @T.inline
    def put(arena, following, tx):
        for i in T.unroll(loads):
            item = T.meta_var(i * threads + tx)
            if item < batch * vectors:
                target = T.meta_var(item // vectors * stride + item % vectors * WORDS)
                arena[T.Ramp(target, 1, WORDS)] = following[T.Ramp(i * WORDS, 1, WORDS)]

    def vector(c, j, half, i):
        """Where a lane's vector is among those on their way."""
        return T.Ramp((((c * own + j) * halves + half) * _BLOCK_VECTORS + i) * WORDS, 1, WORDS)

    @T.inline
    def load(W, weights, cta, c, number, j, tx):
        """A warp's block j of chunk ``number`` into registers, those of chunk c of a turn."""
        tile = T.meta_var(first_tile(cta) + tx // WARP // splits)
        block = T.meta_var((number * splits + tx // WARP % splits) * own + j)
        at = T.meta_var(block * BLOCK + tx % WARP % _ROW_LANES * CHUNK)
        for half in T.unroll(halves):
            for i in T.unroll(_BLOCK_VECTORS):
                row = T.meta_var(weight_row(tile, half, i, tx % WARP))
                weights[vector(c, j, half, i)] = words(W, [row, at])

    @T.inline
    def put_block(arena, weights, c, j, half, tx):
        for i in T.unroll(_BLOCK_VECTORS):
            row = T.meta_var(i * (WARP // _ROW_LANES) + tx % WARP // _ROW_LANES)
            target = T.meta_var(
                own_tile(tx // WARP, j) + row * _TILE_STRIDE + tx % WARP % _ROW_LANES * WORDS
            )
            arena[T.Ramp(target, 1, WORDS)] = weights[vector(c, j, half, i)]

    @T.inline
    def multiply(arena, weights, w, x, sums, c, j, tx):
        block = T.meta_var(tx // WARP % splits * own + j)
        for n in T.unroll(across):
            for k in T.unroll(matrices):
                word = T.meta_var(n * SIZE * stride + (block * BLOCK + k * SIZE) // 2)
                load_right(x, n * matrices + k, arena.ptr_to([word]), stride, False)
        for half in T.unroll(halves):
            put_block(arena, weights, c, j, half, tx)
            T.cuda.warp_sync()
            for k in T.unroll(matrices):
                word = T.meta_var(own_tile(tx // WARP, j) + k * SIZE // 2)
                load_left(w, k, arena.ptr_to([word]), _TILE_STRIDE)
            if plan.stages == 1:  # with two, lanes that are ahead write to the other
                T.cuda.warp_sync()
            for k in T.unroll(matrices):
                for n in T.unroll(across):
                    multiply_add(sums, half * across + n, w, k, x, n * matrices + k)

    @T.inline
    def turn_of(W, X, arena, buffers, cta, turn, last: bool, tx):
        weights, following, w, x, sums = T.meta_var(buffers)
        for c in T.unroll(together):
            number = T.meta_var(turn * together + c)
            T.tvm_storage_sync("shared")
            put(arena, following, tx)
            if not last or c + 1 < together:
                fetch(X, following, number + 1, tx)
            T.tvm_storage_sync("shared")
            for j in T.unroll(own):
                multiply(arena, weights, w, x, sums, c, j, tx)
                if not last:
                    load(W, weights, cta, c, number + together, j, tx)

    @T.inline
    def start_all(others, Found, cta, tx):
        for i in T.unroll(items_per_thread):
            item = T.meta_var(i * threads + tx)
            output = T.meta_var(output_of(cta, item))
            for half in T.unroll(halves):
                Found[half, i] = f32(0.0)
            if output[1]:
                Found[0, i] = ending.start(others, place(item)[2], output[0])

    @T.inline
    def add_all(arena, Found, half: int, tx):
        for i in T.unroll(items_per_thread):
            item = T.meta_var(i * threads + tx)
            if item < plan.items:
                Found[half, i] = Found[half, i] + sum_of(arena, item)

    @T.inline
    def finish_all(others, Found, cta, tx):
        for i in T.unroll(items_per_thread):
            item = T.meta_var(i * threads + tx)
            output = T.meta_var(output_of(cta, item))
            if output[1]:
                found = T.meta_var([Found[half, i] for half in range(halves)])
                ending.finish(others, found, place(item)[2], output[0])

    @T.inline
    def product(W, operands, arena, cta, tx):
        weights = T.alloc_local((together * own * halves * _BLOCK_VECTORS * WORDS,), "uint32")
        following = T.alloc_local((loads * WORDS,), "uint32")
        w = T.alloc_local((matrices * PART,), dtype)
        x = T.alloc_local((across * matrices * PART,), dtype)
        sums = T.alloc_local((halves * across * PART,), "float32")
        found = T.alloc_local((halves, items_per_thread), "float32")
        X = T.meta_var(operands[0][0])
        buffers = T.meta_var((weights, following, w, x, sums))
        fetch(X, following, 0, tx)
        for c in T.unroll(together):
            for j in T.unroll(own):
                load(W, weights, cta, c, c, j, tx)
        for i in T.unroll(halves * across):
            clear_sums(sums, i)
        start_all(operands[1], found, cta, tx)
        for turn in T.serial(turns - 1):
            turn_of(W, X, arena, buffers, cta, turn, False, tx)
        turn_of(W, X, arena, buffers, cta, turns - 1, True, tx)
        for half in T.unroll(halves):
            T.tvm_storage_sync("shared")
            for n in T.unroll(across):
                target = T.meta_var(arena.ptr_to([tx // WARP * plan.strip + n * SIZE]))
                store_sums(target, sums, half * across + n, strip_stride)
            T.tvm_storage_sync("shared")
            add_all(arena, found, half, tx)
        finish_all(operands[1], found, cta, tx)

    return product
