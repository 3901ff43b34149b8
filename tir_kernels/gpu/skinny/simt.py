"""A product of few rows for any type and shape: a warp for each output, no tensor cores."""

from __future__ import annotations

from tvm.script import tirx as T

from ...vector_math import f32, total
from ..dependent_launch import DependentLaunch
from ..reduce import WARP, warp_reduce
from .ending import Ending
from .plan import Shape

WARPS = 8


def simt_product(shape: Shape, source, ending: Ending, launch: DependentLaunch):
    """An inline (W, operands, arena, cta, tx) for outputs cta * WARPS to (cta + 1) * WARPS - 1.

    ``source`` gives the activations.
    """
    batch, inputs, outputs = shape.batch, shape.inputs, shape.outputs
    halves = 2 if shape.gated else 1
    prepare = source.prepare(batch, WARP * WARPS)
    reduce = warp_reduce(total, WARP, halves * batch)

    def term(W, activations, Found, half, output, b, k):
        weight = T.Cast("float32", W[T.Cast("int64", output + half * outputs), k])
        return weight * source.value(activations, Found, shape.dtype, b, k)

    @T.inline
    def product(W, operands, arena, cta, tx):
        Found = T.decl_buffer(
            (max(1, source.found_bytes * batch // 4),),
            "float32",
            data=arena.data,
            scope="shared.dyn",
        )
        sums = T.alloc_local((batch * halves,), "float32")
        output: T.let = cta * WARPS + tx // WARP
        lane: T.let = tx % WARP
        launch.wait()
        prepare(operands[0], Found, tx)
        T.tvm_storage_sync("shared")
        if output < outputs:
            for i in T.unroll(batch * halves):
                sums[i] = f32(0.0)
            for step in T.serial(-(-inputs // WARP)):
                k: T.let = step * WARP + lane
                if k < inputs:
                    for b in T.unroll(batch):
                        for half in T.unroll(halves):
                            sums[b * halves + half] = sums[b * halves + half] + term(
                                W, operands[0], Found, half, output, b, k
                            )
            reduce(sums)
            # Lane b finishes batch row b.
            for b in T.unroll(batch - 1):
                if lane == b + 1:
                    for half in T.unroll(halves):
                        sums[half] = sums[(b + 1) * halves + half]
            if lane < batch:
                sums[0] = sums[0] + ending.start(operands[1], lane, output)
                ending.finish(operands[1], [sums[half] for half in range(halves)], lane, output)

    return product
