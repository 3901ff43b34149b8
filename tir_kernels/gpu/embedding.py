"""Rows of the embedding table, and the last row of a prefill."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32
from .vectors import vector_width

_THREADS = 128


@functools.cache
def embed(vocab: int, dim: int, scale: float, dtype: str):
    """x [m, D] float32 = table[token] * scale. The caller has checked that tokens are in range."""
    width = vector_width("float32", dim)

    @T.prim_func(private=True)
    def embed(tokens: T.handle, table: T.handle, x: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        Tokens = T.match_buffer(tokens, (m,), "int32")
        Table = T.match_buffer(table, (vocab, dim), dtype)
        X = T.match_buffer(x, (m, dim), "float32")
        T.device_entry()
        part, row = T.cta_id([T.ceildiv(dim, _THREADS * width), m])
        tx = T.thread_id([_THREADS])
        first = T.meta_var((part * _THREADS + tx) * width)
        if first < dim:
            values = T.alloc_local((width,), dtype)
            for j in T.vectorized(width):
                values[j] = Table[Tokens[row], first + j]
            for j in T.vectorized(width):
                X[row, first + j] = T.Cast("float32", values[j]) * f32(scale)

    return embed


@functools.cache
def last_row(dim: int, dtype: str):
    """y [1, D] = the last of the rows x [m, D]: prefill needs the logits of one position only."""

    @T.prim_func(private=True)
    def last_row(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, dim), dtype)
        Y = T.match_buffer(y, (1, dim), dtype)
        T.device_entry()
        part = T.cta_id([T.ceildiv(dim, _THREADS)])
        tx = T.thread_id([_THREADS])
        if part * _THREADS + tx < dim:
            Y[0, part * _THREADS + tx] = X[m - 1, part * _THREADS + tx]

    return last_row
