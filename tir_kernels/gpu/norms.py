"""Group RMS norm and group layer norm over features: one CTA for each group of each row."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32, total
from .reduce import WARP, cta_reduce
from .unit import GpuUnit
from .vectors import Vectors, vector_width


class _Group:
    """How the threads of a CTA, at most so many, share the ``size`` features of one group.

    In each of ``rounds`` rounds a thread takes ``width`` adjacent features; ``width`` also divides
    ``strides``, so that an access of that many elements of dtype is aligned in every tensor.
    """

    def __init__(self, threads: int, size: int, dtype: str, *strides: int):
        self.width = vector_width(dtype, size, *strides)
        pieces = size // self.width
        self.threads = min(threads, -(-pieces // WARP) * WARP)
        self.rounds = -(-pieces // self.threads)

    def first(self, i, tx):
        """The first feature, inside the group, of thread tx in round i; ``size`` or more if none"""
        return (i * self.threads + tx) * self.width


@functools.cache
def rms_norm(dim: int, groups: int, eps: float, dtype: str, unit: GpuUnit):
    """y = x * rsqrt(mean(x^2) + eps) * weight over each group of dim/groups features.

    x, y [m, D]; weight [D] already has the one added that checkpoints leave out.
    """
    size = dim // groups
    span = _Group(unit.cta(256), size, dtype)
    width, threads, rounds = span.width, span.threads, span.rounds
    reduce = cta_reduce(total, threads)
    elements, floats = Vectors(width, dtype), Vectors(width, "float32")

    @T.prim_func(private=True)
    def rmsnorm(x: T.handle, weight: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, dim), dtype)
        W = T.match_buffer(weight, (dim,), "float32")
        Y = T.match_buffer(y, (m, dim), dtype)
        T.device_entry()
        group, row = T.cta_id([groups, m])
        tx = T.thread_id([threads])
        values = T.alloc_local((rounds * width,), dtype)
        weights = T.alloc_local((width,), "float32")
        squares = T.alloc_local((1,), "float32")
        partial = T.alloc_shared((1, threads // WARP), "float32")
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                elements.load_row(values, i * width, X, row, group * size + span.first(i, tx))
        squares[0] = f32(0.0)
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                for j in T.unroll(width):
                    value = T.meta_var(T.Cast("float32", values[i * width + j]))
                    squares[0] = squares[0] + value * value
        reduce(squares, partial, tx)
        scale: T.float32 = T.rsqrt(squares[0] / f32(size) + f32(eps))
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                floats.load(weights, 0, W, group * size + span.first(i, tx))
                for j in T.unroll(width):
                    value = T.meta_var(T.Cast("float32", values[i * width + j]))
                    values[i * width + j] = T.Cast(dtype, value * scale * weights[j])
                elements.store_row(Y, row, group * size + span.first(i, tx), values, i * width)

    return rmsnorm


@functools.cache
def layer_norm(dim: int, groups: int, eps: float, projected: int, dtype: str, unit: GpuUnit):
    """The attention block's output and its layer norm, the input of the FFN.

    out [m, D] float32 = h2 + h1 + bias + x: h2 [m, D] = wh2 gated; h1 = wh1 mx, the last D columns
    of products [m, P], and its bias, the end of bias_products [P]; x [m, D] float32.
    n [m, D] = (out - mean) * rsqrt(var + eps) * weight + bias over each group of dim/groups
    features; the weight has the one added that checkpoints leave out, the variance is the biased.
    """
    size, offset = dim // groups, projected - dim
    span = _Group(unit.cta(512), size, "float32", projected, offset)
    width, threads, rounds = span.width, span.threads, span.rounds
    reduce = cta_reduce(total, threads)
    elements, floats = Vectors(width, dtype), Vectors(width, "float32")

    @T.prim_func(private=True)
    def layernorm(
        h2: T.handle,
        products: T.handle,
        bias_products: T.handle,
        x: T.handle,
        weight: T.handle,
        bias: T.handle,
        out: T.handle,
        n: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        H2 = T.match_buffer(h2, (m, dim), dtype)
        H1 = T.match_buffer(products, (m, projected), dtype)
        H1Bias = T.match_buffer(bias_products, (projected,), "float32")
        X = T.match_buffer(x, (m, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        Out = T.match_buffer(out, (m, dim), "float32")
        Y = T.match_buffer(n, (m, dim), dtype)
        T.device_entry()
        group, row = T.cta_id([groups, m])
        tx = T.thread_id([threads])
        values = T.alloc_local((rounds * width,), "float32")
        h2_values = T.alloc_local((rounds * width,), dtype)
        h1_values = T.alloc_local((rounds * width,), dtype)
        normal = T.alloc_local((width,), dtype)
        scales = T.alloc_local((width,), "float32")
        shifts = T.alloc_local((width,), "float32")
        sums = T.alloc_local((1,), "float32")
        partial = T.alloc_shared((1, threads // WARP), "float32")
        partial_squares = T.alloc_shared((1, threads // WARP), "float32")
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                column = T.meta_var(group * size + span.first(i, tx))
                floats.load_row(values, i * width, X, row, column)
                elements.load_row(h2_values, i * width, H2, row, column)
                elements.load_row(h1_values, i * width, H1, row, offset + column)
        sums[0] = f32(0.0)
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                column = T.meta_var(group * size + span.first(i, tx))
                floats.load(shifts, 0, H1Bias, offset + column)
                for j in T.unroll(width):
                    values[i * width + j] = (
                        values[i * width + j]
                        + T.Cast("float32", h2_values[i * width + j])
                        + (T.Cast("float32", h1_values[i * width + j]) + shifts[j])
                    )
                    sums[0] = sums[0] + values[i * width + j]
                floats.store_row(Out, row, column, values, i * width)
        reduce(sums, partial, tx)
        mean: T.float32 = sums[0] / f32(size)
        sums[0] = f32(0.0)
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                for j in T.unroll(width):
                    values[i * width + j] = values[i * width + j] - mean
                    sums[0] = sums[0] + values[i * width + j] * values[i * width + j]
        reduce(sums, partial_squares, tx)
        scale: T.float32 = T.rsqrt(sums[0] / f32(size) + f32(eps))
        for i in T.unroll(rounds):
            if span.first(i, tx) < size:
                column = T.meta_var(group * size + span.first(i, tx))
                floats.load(scales, 0, W, column)
                floats.load(shifts, 0, B, column)
                for j in T.unroll(width):
                    normal[j] = T.Cast(dtype, values[i * width + j] * scale * scales[j] + shifts[j])
                elements.store_row(Y, row, column, normal, 0)

    return layernorm
