"""The gate of the FFN's hidden features."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .elementary import silu
from .vectors import vector_width

_THREADS = 128


@functools.cache
def gate(hidden: int, swiglu: bool, dtype: str):
    """y [m, F] = silu(x[:, :F]) * x[:, F:] of x [m, 2F], or silu(x) of x [m, F] without swiglu."""
    width = vector_width(dtype, hidden)

    @T.inline
    def gated(X, Y, row, first):
        values = T.alloc_local((width,), dtype)
        factors = T.alloc_local((width,), dtype)
        for j in T.vectorized(width):
            values[j] = X[row, first + j]
        for j in T.vectorized(width):
            factors[j] = X[row, hidden + first + j]
        for j in T.unroll(width):
            values[j] = T.Cast(
                dtype, silu(T.Cast("float32", values[j])) * T.Cast("float32", factors[j])
            )
        for j in T.vectorized(width):
            Y[row, first + j] = values[j]

    @T.inline
    def activated(X, Y, row, first):
        values = T.alloc_local((width,), dtype)
        for j in T.vectorized(width):
            values[j] = X[row, first + j]
        for j in T.unroll(width):
            values[j] = T.Cast(dtype, silu(T.Cast("float32", values[j])))
        for j in T.vectorized(width):
            Y[row, first + j] = values[j]

    columns, activate = (2 * hidden, gated) if swiglu else (hidden, activated)

    @T.prim_func(private=True)
    def gate(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, columns), dtype)
        Y = T.match_buffer(y, (m, hidden), dtype)
        T.device_entry()
        part, row = T.cta_id([T.ceildiv(hidden, _THREADS * width), m])
        tx = T.thread_id([_THREADS])
        if (part * _THREADS + tx) * width < hidden:
            activate(X, Y, row, (part * _THREADS + tx) * width)

    return gate
