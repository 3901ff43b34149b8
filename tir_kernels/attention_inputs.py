"""From the shared projection z to queries, keys and memory features, written into the rings.

z is normalised per head (RMS, no weight); q, k, aq, ak are affine in it with the 1/sqrt(zh) folded
into gamma. Keys are stored rotated by their index i inside their chunk; a query at index i is
rotated by i against its own chunk and by C + i against the previous one, so 2C table rows serve
any position, exactly. Row t mod 2C of the rings belongs to position t.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .softmax import row_softmax
from .vector_math import f32, rsqrt, total
from .vector_unit import VectorUnit


def rotated(first, second, cos, sin):
    """(first + i second) (cos + i sin): a pair of features turned by the table's angle."""
    return first * cos - second * sin, first * sin + second * cos


def _head(z_head: int, rope_heads: int, z_dim: int, chunk: int, eps: float, unit: VectorUnit):
    """An inline for one head of one row."""
    width = unit.fit(z_head)
    pairs = z_head // 2
    softmax = row_softmax(width)

    @T.inline
    def affine(Z, Gamma, Beta, which, head, Out):
        for i in T.serial(z_head // width):
            for j in T.vectorized(width):
                Out[0, i * width + j] = (
                    Z[i * width + j] * Gamma[which, head * z_head + i * width + j]
                    + Beta[which, head * z_head + i * width + j]
                )

    @T.inline
    def rotate(In, Rope, angle, write, target):
        for i in T.serial(pairs):
            pair = T.meta_var(
                rotated(In[0, 2 * i], In[0, 2 * i + 1], Rope[angle, i, 0], Rope[angle, i, 1])
            )
            write(target, 2 * i, pair[0])
            write(target, 2 * i + 1, pair[1])

    @T.inline
    def write_query(target, i, value):
        target[0][target[1], target[2], target[3] + i] = value

    @T.inline
    def write_key(target, i, value):
        ring = target[0]
        ring[target[1], target[2], target[3], target[4] + i] = T.Cast(ring.dtype, value)

    @T.inline
    def plain(In, write, target):
        for i in T.serial(z_head):
            write(target, i, In[0, i])

    @T.inline
    def head_of_row(
        Projected, Gamma, Beta, Rope, Queries, KeyRing, MemoryRing, row, head, layer, slot, position
    ):
        index = position % chunk
        ring_row = position % (2 * chunk)
        first = head * z_head
        z = T.alloc_buffer((z_head,), "float32")
        out = T.alloc_buffer((1, z_head), "float32")
        lanes = T.alloc_buffer((width,), "float32")
        scalar = T.alloc_buffer((1,), "float32")
        for j in T.vectorized(width):
            lanes[j] = f32(0.0)
        for i in T.serial(z_head // width):
            for j in T.vectorized(width):
                lanes[j] = lanes[j] + (
                    Projected[row, first + i * width + j] * Projected[row, first + i * width + j]
                )
        scalar[0] = rsqrt(total([lanes[j] for j in range(width)]) / f32(z_head) + f32(eps))
        for i in T.serial(z_head // width):
            for j in T.vectorized(width):
                z[i * width + j] = Projected[row, first + i * width + j] * scalar[0]

        affine(z, Gamma, Beta, 0, head, out)
        if head < rope_heads:
            rotate(out, Rope, index, write_query, (Queries, row, 0, first))
            rotate(out, Rope, chunk + index, write_query, (Queries, row, 1, first))
        else:
            plain(out, write_query, (Queries, row, 0, first))
            plain(out, write_query, (Queries, row, 1, first))

        affine(z, Gamma, Beta, 1, head, out)
        if head < rope_heads:
            rotate(out, Rope, index, write_key, (KeyRing, layer, slot, ring_row, first))
        else:
            plain(out, write_key, (KeyRing, layer, slot, ring_row, first))

        # Softmax over the head's features: what reads the memory.
        affine(z, Gamma, Beta, 2, head, out)
        softmax(out, 0, z_head)
        plain(out, write_query, (Queries, row, 2, first))

        affine(z, Gamma, Beta, 3, head, out)
        plain(out, write_key, (MemoryRing, layer, slot, ring_row, first))

    return head_of_row


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
    ring_dtype: str,
    batched: bool,
    unit: VectorUnit,
):
    """Queries [m, 3, S] (own chunk, previous chunk, memory features); k, ak, v into the rings.

    Rows are m consecutive steps of the sequence in slots[0], or, ``batched``, one step of each
    slot. ``projected`` [m, S+E+D] holds z in its first S columns; v is [m, E].
    """
    z_dim, value_dim = heads * z_head, heads * v_head
    width = unit.fit(value_dim)
    columns = z_dim + value_dim + model_dim
    head_of_row = _head(z_head, rope_heads, z_dim, chunk, eps, unit)

    def entry(row):
        """The row's entry in the list of slots."""
        return row if batched else 0

    def steps(row):
        """Steps from the slot's position to the row's."""
        return 0 if batched else row

    @T.inline
    def one_row(
        Projected, V, Gamma, Beta, Rope, Queries, Keys, Values, MemoryKeys, row, layer, slot, pos
    ):
        for head in T.serial(heads):
            head_of_row(
                Projected, Gamma, Beta, Rope, Queries, Keys, MemoryKeys, row, head, layer, slot, pos
            )
        for i in T.serial(value_dim // width):
            for j in T.vectorized(width):
                Values[layer, slot, pos % (2 * chunk), i * width + j] = T.Cast(
                    ring_dtype, V[row, i * width + j]
                )

    @T.prim_func(s_tir=True, private=True)
    def attention_inputs(
        projected: T.handle,
        v: T.handle,
        gamma: T.handle,
        beta: T.handle,
        rope: T.handle,
        slots: T.handle,
        position: T.handle,
        keys: T.handle,
        values: T.handle,
        memory_keys: T.handle,
        layer: T.int64,
        queries: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        listed = T.int32()
        Projected = T.match_buffer(projected, (m, columns), "float32")
        V = T.match_buffer(v, (m, value_dim), "float32")
        Gamma = T.match_buffer(gamma, (4, z_dim), "float32")
        Beta = T.match_buffer(beta, (4, z_dim), "float32")
        Rope = T.match_buffer(rope, (2 * chunk, (z_head + 1) // 2, 2), "float32")
        Slots = T.match_buffer(slots, (listed,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Keys = T.match_buffer(keys, (layers, num_slots, 2 * chunk, z_dim), ring_dtype)
        Values = T.match_buffer(values, (layers, num_slots, 2 * chunk, value_dim), ring_dtype)
        MemoryKeys = T.match_buffer(memory_keys, (layers, num_slots, 2 * chunk, z_dim), ring_dtype)
        Queries = T.match_buffer(queries, (m, 3, z_dim), "float32")
        if m == 1:
            one_row(
                Projected,
                V,
                Gamma,
                Beta,
                Rope,
                Queries,
                Keys,
                Values,
                MemoryKeys,
                0,
                layer,
                Slots[0],
                Position[Slots[0]],
            )
        else:
            for row in T.parallel(m):
                one_row(
                    Projected,
                    V,
                    Gamma,
                    Beta,
                    Rope,
                    Queries,
                    Keys,
                    Values,
                    MemoryKeys,
                    row,
                    layer,
                    Slots[entry(row)],
                    Position[Slots[entry(row)]] + steps(row),
                )

    return attention_inputs
