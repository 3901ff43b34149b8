"""A product of few rows for any type and shape, without tensor cores: weights straight to lanes.

A warp takes some weight rows at once, or, where there are few outputs, a part of their inputs. A
lane multiplies the vectors that it loaded, while the next are on their way, with the activations
that all warps share. In the end the lanes' sums are dealt out as they are added up: lane i is left
with item i.
"""

from __future__ import annotations

import dataclasses

from tvm.script import tirx as T

from ...vector_math import f32, total
from ..dependent_launch import DependentLaunch
from ..reduce import WARP, warp_deal
from ..unit import GpuUnit
from ..vectors import vector_width
from .ending import Ending
from .plan import Shape

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Loads of 16 bytes that a lane has on their way, and CTAs for each multiprocessor: enough of them
# that some read while others begin or end.
_LOADS = 8
_RESIDENT = 3
# Shared memory that a kernel may have without asking CUDA for more, and what of it a norm takes.
_STATIC = 48 * 1024
_NORM_BYTES = 512


@dataclasses.dataclass(frozen=True)
class SimtPlan:
    """Which outputs, inputs and loads are whose; ``multiprocessors`` are to be kept busy."""

    shape: Shape
    unit: GpuUnit
    multiprocessors: int

    @property
    def rows(self) -> int:
        """Outputs of a warp: as many as its lanes have registers for, with all batch rows."""
        return max(1, (4 if self.shape.batch <= 16 else 2) // self.shape.halves)

    @property
    def weight_rows(self) -> int:
        return self.rows * self.shape.halves

    @property
    def items(self) -> int:
        """Sums of a warp."""
        return self.weight_rows * self.shape.batch

    @property
    def threads(self) -> int:
        """More warps share the activations where there are many."""
        return self.unit.cta(256 if self.shape.batch <= 8 else 512)

    @property
    def warps(self) -> int:
        return self.threads // WARP

    @property
    def partial_bytes(self) -> int:
        return 4 * self.warps * self.items

    @property
    def room(self) -> int:
        """Elements of each row of activations that fit in shared memory."""
        # A kernel may have two products.
        free = min(self.unit.room(self.threads), _STATIC) - 2 * self.partial_bytes - _NORM_BYTES
        return free // (self.shape.batch * _BYTES[self.shape.dtype])

    @property
    def width(self) -> int:
        """Elements of one load: as many as possible for which a warp's activations fit."""
        widest = vector_width(self.shape.dtype, self.shape.inputs)
        return min(widest, 1 << (self.room // WARP).bit_length() - 1)

    @property
    def vectors(self) -> int:
        return self.shape.inputs // self.width

    @property
    def ahead(self) -> int:
        """Vectors of each weight row that a lane has on their way."""
        most = min(_LOADS // self.weight_rows, self.room // (WARP * self.width))
        return max(1, min(most, 32 // self.shape.batch))

    @property
    def splits(self) -> int:
        """Warps that share the inputs of an output: more where that makes too few CTAs."""
        turn = WARP * self.ahead
        most = min(self.warps, self.vectors // turn, self.room // (turn * self.width))
        splits = 1
        while 2 * splits <= most and self._ctas(splits) < _RESIDENT * self.multiprocessors:
            splits *= 2
        return splits

    def _ctas(self, splits: int) -> int:
        return -(-self.shape.outputs // (self.warps // splits * self.rows))

    @property
    def ctas(self) -> int:
        return self._ctas(self.splits)

    @property
    def outputs(self) -> int:
        """Outputs of a CTA."""
        return self.warps // self.splits * self.rows

    @property
    def step(self) -> int:
        """Vectors that all lanes of an output take at once."""
        return WARP * self.splits * self.ahead

    @property
    def chunk_steps(self) -> int:
        """Steps for which activations are in shared memory at a time."""
        steps = -(-self.vectors // self.step)
        if self.shape.inputs <= self.room:
            return steps
        fit = self.room // (self.step * self.width)
        return -(-steps // -(-steps // fit))

    @property
    def chunks(self) -> int:
        return -(-self.vectors // (self.step * self.chunk_steps))

    @property
    def stride(self) -> int:
        """Elements of a row of activations in shared memory."""
        if self.chunks == 1:
            return self.shape.inputs
        return self.chunk_steps * self.step * self.width

    @property
    def staged(self) -> int:
        """Elements of activations in shared memory."""
        return self.shape.batch * self.stride


def simt_product(plan: SimtPlan, source, ending: Ending, launch: DependentLaunch):
    """An inline (W, (inputs, others), arena, cta, tx) for the outputs of CTA ``cta`` of plan.ctas.

    ``source`` brings the activations into shared memory: ``arena``, plan.staged elements.
    """
    shape, dtype, batch = plan.shape, plan.shape.dtype, plan.shape.batch
    width, vectors, ahead, step = plan.width, plan.vectors, plan.ahead, plan.step
    rows, weight_rows, halves, splits = plan.rows, plan.weight_rows, shape.halves, plan.splits
    items, outputs = plan.items, plan.outputs
    items_per_thread = -(-outputs * batch // plan.threads)
    whole = plan.chunks * plan.chunk_steps * step == vectors
    stage = source.stage_chunk(plan)
    deal = warp_deal(items)
    dealt = -(-items // WARP)

    def weight_row(cta, warp, number):
        """The weight's row that is number ``number`` of a warp's, the last if there is none."""
        output = cta * outputs + warp // splits * rows + number % rows
        return T.Cast("int64", T.min(output, shape.outputs - 1) + number // rows * shape.outputs)

    def vector_of(turn, u, warp, lane):
        """The number of a lane's vector in the u-th part of step ``turn``."""
        return turn * step + (u * splits + warp % splits) * WARP + lane

    def sum_of(Partial, item, half):
        output = item % outputs
        first = output // rows * splits
        number = (half * rows + output % rows) * batch + item // outputs
        return total([Partial[first + split, number] for split in range(splits)])

    @T.inline
    def load(W, Ring, own, turn, u, warp, lane):
        for row in T.unroll(weight_rows):
            for j in T.vectorized(width):
                Ring[(u * weight_rows + row) * width + j] = W[
                    own[row], T.min(vector_of(turn, u, warp, lane), vectors - 1) * width + j
                ]

    @T.inline
    def multiply(Wide, Staged, at, sums):
        raw = T.alloc_local((width,), dtype)
        x = T.alloc_local((width,), "float32")
        for b in T.unroll(batch):
            for j in T.vectorized(width):
                raw[j] = Staged[b, at * width + j]
            for j in T.unroll(width):
                x[j] = T.Cast("float32", raw[j])
            for row in T.unroll(weight_rows):
                for j in T.unroll(width):
                    sums[row * batch + b] = sums[row * batch + b] + Wide[row * width + j] * x[j]

    @T.inline
    def multiply_existing(Wide, Staged, at, sums, vector):
        if vector < vectors:
            multiply(Wide, Staged, at, sums)

    @T.inline
    def multiply_whole(Wide, Staged, at, sums, vector):
        multiply(Wide, Staged, at, sums)

    accumulate = multiply_whole if whole else multiply_existing

    @T.inline
    def start_all(others, Start, cta, tx):
        for i in T.unroll(items_per_thread):
            item = T.meta_var(i * plan.threads + tx)
            output = T.meta_var(cta * outputs + item % outputs)
            Start[i] = f32(0.0)
            if T.And(item < outputs * batch, output < shape.outputs):
                Start[i] = ending.start(others, item // outputs, output)

    @T.inline
    def finish_all(others, Partial, Start, cta, tx):
        sums = T.alloc_local((halves,), "float32")
        for i in T.unroll(items_per_thread):
            item = T.meta_var(i * plan.threads + tx)
            output = T.meta_var(cta * outputs + item % outputs)
            if T.And(item < outputs * batch, output < shape.outputs):
                for half in T.unroll(halves):
                    sums[half] = sum_of(Partial, item, half)
                sums[0] = sums[0] + Start[i]
                ending.finish(
                    others, [sums[half] for half in range(halves)], item // outputs, output
                )

    @T.inline
    def product(W, operands, arena, cta, tx):
        Staged = T.decl_buffer((batch, plan.stride), dtype, data=arena.data, scope="shared")
        Partial = T.alloc_shared((plan.warps, items), "float32")
        Ring = T.alloc_local((ahead * weight_rows * width,), dtype)
        Wide = T.alloc_local((weight_rows * width,), "float32")
        own = T.alloc_local((weight_rows,), "int64")
        sums = T.alloc_local((1 << (items - 1).bit_length(),), "float32")
        starts = T.alloc_local((items_per_thread,), "float32")
        warp = T.meta_var(tx // WARP)
        lane = T.meta_var(tx % WARP)
        for row in T.unroll(weight_rows):
            own[row] = weight_row(cta, warp, row)
        for u in T.unroll(ahead):
            load(W, Ring, own, 0, u, warp, lane)
        for i in T.unroll(1 << (items - 1).bit_length()):
            sums[i] = f32(0.0)
        launch.wait()
        start_all(operands[1], starts, cta, tx)
        for chunk in T.serial(plan.chunks):
            if chunk > 0:
                T.tvm_storage_sync("shared")
            stage(operands[0], Staged, chunk * plan.stride, tx)
            T.tvm_storage_sync("shared")
            for part in T.serial(plan.chunk_steps):
                turn = T.meta_var(chunk * plan.chunk_steps + part)
                for u in T.unroll(ahead):
                    for i in T.unroll(weight_rows * width):
                        Wide[i] = T.Cast("float32", Ring[u * weight_rows * width + i])
                    load(W, Ring, own, turn + 1, u, warp, lane)
                    accumulate(
                        Wide, Staged, vector_of(part, u, warp, lane), sums,
                        vector_of(turn, u, warp, lane),
                    )  # fmt: skip
        deal(sums, tx)
        for i in T.unroll(dealt):
            if i * WARP + lane < items:
                Partial[warp, i * WARP + lane] = sums[i]
        T.tvm_storage_sync("shared")
        finish_all(operands[1], Partial, starts, cta, tx)

    return product


def holds(batch: int, inputs: int, dtype: str, unit: GpuUnit) -> bool:
    """Whether activations of that size leave a CTA the room it needs besides."""
    return batch * inputs * _BYTES[dtype] <= min(unit.shared, _STATIC) * 3 // 4
