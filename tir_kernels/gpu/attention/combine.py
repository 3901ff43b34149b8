"""Joining the shares of a step's attention."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ...vector_math import f32, largest, total
from ..dependent_launch import DependentLaunch
from ..reduce import WARP, warp_reduce
from ..unit import GpuUnit
from ..vectors import Vectors, vector_width
from .shares import Shares

_THREADS = 256


@functools.cache
def attention_combine(
    batch: int,
    heads: int,
    z_head: int,
    v_head: int,
    model_dim: int,
    chunk: int,
    dtype: str,
    unit: GpuUnit,
):
    """gated [B, E] = r * attention + memory read, from the shares of ``attention_step``.

    r is ``projected`` [B, S+E+D] from column S on. What an idle row gets means nothing.
    """
    launch = DependentLaunch(unit.dependent_launch)
    rows = Shares(batch, heads, z_head, v_head, chunk, dtype, unit).rows
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    width = vector_width("float32", v_head, z_dim, columns)
    vectors = Vectors(width, "float32")
    warps = min(unit.cta(_THREADS) // WARP, rows)
    rounds = -(-rows // warps)
    tile = WARP * width
    highest_of, total_of = warp_reduce(largest, WARP), warp_reduce(total, WARP)

    def share_of(tx, i: int):
        """A warp's share ``i``, the last one if there is no such share."""
        return T.min(tx // WARP + i * warps, rows - 1)

    @T.inline
    def levels(Scale, b, head, highest, sum_exp, tx):
        """The largest score, and the sum of exponentials against it."""
        highest[0] = T.min_value("float32")
        for i in T.unroll(-(-rows // WARP)):
            share = T.meta_var(tx % WARP + i * WARP)
            if share < rows and Scale[b, head, T.min(share, rows - 1), 1] > f32(0.0):
                highest[0] = T.max(highest[0], Scale[b, head, T.min(share, rows - 1), 0])
        highest_of(highest)
        sum_exp[0] = f32(0.0)
        for i in T.unroll(-(-rows // WARP)):
            share = T.meta_var(tx % WARP + i * WARP)
            if share < rows and Scale[b, head, T.min(share, rows - 1), 1] > f32(0.0):
                sum_exp[0] = sum_exp[0] + Scale[b, head, T.min(share, rows - 1), 1] * T.exp(
                    Scale[b, head, T.min(share, rows - 1), 0] - highest[0]
                )
        total_of(sum_exp)

    @T.prim_func(private=True)
    def attention_combine(partial: T.handle, scale: T.handle, projected: T.handle, gated: T.handle):
        T.func_attr(launch.attributes)
        Partial = T.match_buffer(partial, (batch, heads, rows, v_head), "float32")
        Scale = T.match_buffer(scale, (batch, heads, rows, 2), "float32")
        Projected = T.match_buffer(projected, (batch, columns), "float32")
        Gated = T.match_buffer(gated, (batch, value_dim), dtype)
        T.device_entry()
        part, head, b = T.cta_id([-(-v_head // tile), heads, batch])
        tx = T.thread_id([WARP * warps])
        Attended = T.alloc_shared((warps, tile), "float32")
        Read = T.alloc_shared((warps, tile), "float32")
        highest = T.alloc_local((1,), "float32")
        sum_exp = T.alloc_local((1,), "float32")
        attended = T.alloc_local((width,), "float32")
        read = T.alloc_local((width,), "float32")
        shares = T.alloc_local((rounds * width,), "float32")
        row = T.alloc_local((width,), "float32")
        out = T.alloc_local((width,), dtype)
        lane = T.meta_var(tx % WARP)
        column = T.meta_var(T.min(part * tile + lane * width, v_head - width))
        launch.wait()
        for i in T.unroll(rounds):
            for j in T.vectorized(width):
                shares[i * width + j] = Partial[b, head, share_of(tx, i), column + j]
        levels(Scale, b, head, highest, sum_exp, tx)
        for j in T.unroll(width):
            attended[j] = f32(0.0)
            read[j] = f32(0.0)
        for i in T.unroll(rounds):
            if tx // WARP + i * warps < rows:
                if Scale[b, head, share_of(tx, i), 1] > f32(0.0):
                    weight: T.let = T.exp(Scale[b, head, share_of(tx, i), 0] - highest[0])
                    for j in T.unroll(width):
                        attended[j] = attended[j] + weight * shares[i * width + j]
                if Scale[b, head, share_of(tx, i), 1] < f32(0.0):
                    for j in T.unroll(width):
                        read[j] = read[j] + shares[i * width + j]
        for j in T.vectorized(width):
            Attended[tx // WARP, lane * width + j] = attended[j]
        for j in T.vectorized(width):
            Read[tx // WARP, lane * width + j] = read[j]
        T.tvm_storage_sync("shared")
        if tx < WARP and part * tile + lane * width < v_head:
            vectors.load_row(row, 0, Projected, b, z_dim + head * v_head + column)
            for j in T.unroll(width):
                attended[j] = total([Attended[w, lane * width + j] for w in range(warps)])
                read[j] = total([Read[w, lane * width + j] for w in range(warps)])
                out[j] = T.Cast(dtype, attended[j] / sum_exp[0] * row[j] + read[j])
            for j in T.vectorized(width):
                Gated[b, head * v_head + column + j] = out[j]

    return attention_combine
