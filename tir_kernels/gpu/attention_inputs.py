"""From the products of a prefill to queries, keys and memory features, written into the rings."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32
from .elementary import silu
from .head_lanes import HeadTransform, head_lanes
from .unit import GpuUnit
from .vectors import Vectors, vector_width

_THREADS = 256
_VECTORS = 4  # of values that a thread has on their way


@functools.cache
def attention_inputs(
    heads: int,
    z_head: int,
    v_head: int,
    rope_heads: int,
    model_dim: int,
    chunk: int,
    eps: float,
    layers: int,
    dtype: str,
    unit: GpuUnit,
):
    """Queries [3, m, S] (own chunk, previous chunk, memory features); k, ak, v into the rings.

    Rows are m consecutive steps of the sequence in slots[0]. ``projected`` [m, S+E+D], whose first
    S columns are z, and v [m, E] are products without their biases; v also lacks its silu.
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    columns = z_dim + value_dim + model_dim
    angles = 2 * ((z_head + 1) // 2)
    threads = unit.cta(_THREADS)
    layout = head_lanes(z_head, dtype)
    lanes, held, slices, width = layout.lanes, layout.held, layout.slices, layout.width
    transform = HeadTransform(layout, heads, rope_heads, eps)
    z_access = vector_width(dtype, z_head, columns)
    z_vectors, bias_vectors = Vectors(z_access, dtype), Vectors(width, "float32")
    v_width = vector_width(dtype, value_dim)
    v_vectors, v_bias_vectors = Vectors(v_width, dtype), Vectors(v_width, "float32")
    together = threads // lanes  # heads of one CTA
    tile = threads * _VECTORS  # vectors of values of one CTA
    # CTAs for values to each one for heads.
    share = -(-value_dim // v_width * together // (heads * tile))

    @T.inline
    def load_z(Projected, Bias, row, head, lane, Z):
        raw = T.alloc_local((held,), dtype)
        for s in T.unroll(slices):
            column = T.meta_var(head * z_head + layout.first(lane, s))
            for i in T.unroll(width // z_access):
                z_vectors.load_row(
                    raw, s * width + i * z_access, Projected, row, column + i * z_access
                )
            bias_vectors.load(Z, s * width, Bias, column)
        for i in T.unroll(held):
            Z[i] = layout.within(lane, i, Z[i] + T.Cast("float32", raw[i]), f32(0.0))

    @T.inline
    def store_query(X, Queries, which, row, head, lane, inside):
        rounded = T.alloc_local((held,), dtype)
        for i in T.unroll(held):
            rounded[i] = T.Cast(dtype, X[i])
        for s in T.unroll(slices):
            if inside and layout.vector(lane, s) < layout.vectors:
                for j in T.vectorized(width):
                    Queries[which, row, head * z_head + layout.first(lane, s) + j] = rounded[
                        s * width + j
                    ]

    @T.inline
    def store_key(X, Ring, layer, slot, row, head, lane, inside):
        rounded = T.alloc_local((held,), dtype)
        for i in T.unroll(held):
            rounded[i] = T.Cast(dtype, X[i])
        for s in T.unroll(slices):
            if inside and layout.vector(lane, s) < layout.vectors:
                for j in T.vectorized(width):
                    Ring[layer, slot, row, head * z_head + layout.first(lane, s) + j] = rounded[
                        s * width + j
                    ]

    @T.inline
    def heads_of_rows(
        Projected,
        Bias,
        Gamma,
        Beta,
        Rope,
        Queries,
        Keys,
        MemoryKeys,
        m,
        layer,
        slot,
        first,
        item,
        tx,
    ):
        """A head of a row for each run of lanes; ``first`` is row 0's index inside its chunk."""
        row = T.min(T.truncdiv(item, heads), m - 1)
        head = T.truncmod(item, heads)
        inside = item < m * heads
        Z = T.alloc_local((held,), "float32")
        X = T.alloc_local((held,), "float32")
        turned = T.alloc_local((held,), "float32")
        load_z(Projected, Bias, row, head, tx, Z)
        transform.normalise(Z)
        transform.affine(Z, Gamma, Beta, 0, head, tx, X)
        transform.rotate(X, Rope, first % chunk + row, head, tx, turned)
        store_query(turned, Queries, 0, row, head, tx, inside)
        transform.rotate(X, Rope, chunk + first % chunk + row, head, tx, turned)
        store_query(turned, Queries, 1, row, head, tx, inside)
        transform.affine(Z, Gamma, Beta, 1, head, tx, X)
        transform.rotate(X, Rope, first % chunk + row, head, tx, turned)
        store_key(turned, Keys, layer, slot, first + row, head, tx, inside)
        # Softmax over the head's features: what reads the memory.
        transform.affine(Z, Gamma, Beta, 2, head, tx, X)
        transform.softmax(X, tx)
        store_query(X, Queries, 2, row, head, tx, inside)
        transform.affine(Z, Gamma, Beta, 3, head, tx, X)
        store_key(X, MemoryKeys, layer, slot, first + row, head, tx, inside)

    @T.inline
    def values(V, BiasV, Values, m, layer, slot, first, vector, tx):
        """A tile of v's vectors, in the order of memory."""
        raw = T.alloc_local((_VECTORS * v_width,), dtype)
        bias = T.alloc_local((v_width,), "float32")
        for i in T.unroll(_VECTORS):
            number = T.meta_var(T.min(vector + i * threads, m * (value_dim // v_width) - 1))
            v_vectors.load_row(
                raw,
                i * v_width,
                V,
                T.truncdiv(number, value_dim // v_width),
                T.truncmod(number, value_dim // v_width) * v_width,
            )
        for i in T.unroll(_VECTORS):
            number = T.meta_var(vector + i * threads)
            if number < m * (value_dim // v_width):
                v_bias_vectors.load(
                    bias, 0, BiasV, T.truncmod(number, value_dim // v_width) * v_width
                )
                for j in T.unroll(v_width):
                    raw[i * v_width + j] = T.Cast(
                        dtype, silu(T.Cast("float32", raw[i * v_width + j]) + bias[j])
                    )
                for j in T.vectorized(v_width):
                    Values[
                        layer,
                        slot,
                        first + T.truncdiv(number, value_dim // v_width),
                        T.truncmod(number, value_dim // v_width) * v_width + j,
                    ] = raw[i * v_width + j]

    @T.prim_func(private=True)
    def attention_inputs(
        projected: T.handle,
        v: T.handle,
        bias_v: T.handle,
        bias: T.handle,
        gamma: T.handle,
        beta: T.handle,
        rope: T.handle,
        slots: T.handle,
        position: T.handle,
        keys: T.handle,
        values_ring: T.handle,
        memory_keys: T.handle,
        layer: T.int64,
        queries: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        Projected = T.match_buffer(projected, (m, columns), dtype)
        V = T.match_buffer(v, (m, value_dim), dtype)
        BiasV = T.match_buffer(bias_v, (value_dim,), "float32")
        Bias = T.match_buffer(bias, (columns,), "float32")
        Gamma = T.match_buffer(gamma, (4, z_dim), "float32")
        Beta = T.match_buffer(beta, (4, z_dim), "float32")
        Table = T.match_buffer(rope, (2 * chunk, angles // 2, 2), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Values = T.match_buffer(values_ring, (layers, num_slots, 2 * chunk, value_dim), dtype)
        MemoryKeys = T.match_buffer(memory_keys, (layers, num_slots, 2 * chunk, z_dim), dtype)
        Queries = T.match_buffer(queries, (3, m, z_dim), dtype)
        T.device_entry()
        # CTAs of both kinds side by side: the one's computation hides behind the other's memory.
        number = T.cta_id([T.ceildiv(m * heads, together) * (1 + share)])
        tx = T.thread_id([threads])
        Rope = T.decl_buffer((2 * chunk, angles), "float32", data=Table.data)
        slot = Slots[0]
        first = T.truncmod(Position[slot], 2 * chunk)
        part = T.truncdiv(number, 1 + share)
        kind = T.truncmod(number, 1 + share)
        if kind == 0:
            heads_of_rows(
                Projected,
                Bias,
                Gamma,
                Beta,
                Rope,
                Queries,
                Keys,
                MemoryKeys,
                m,
                layer,
                slot,
                first,
                part * together + tx // lanes,
                tx,
            )
        else:
            values(
                V, BiasV, Values, m, layer, slot, first, (part * share + kind - 1) * tile + tx, tx
            )

    return attention_inputs
