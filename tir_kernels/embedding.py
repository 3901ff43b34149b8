"""Rows of the embedding table, and the last row of a prefill."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .vector_unit import VectorUnit


@functools.cache
def embed(vocab: int, dim: int, scale: float, weight_dtype: str, unit: VectorUnit):
    """x [m, D] float32 = table[token] * scale. The caller has checked that tokens are in range."""
    width = unit.fit(dim)

    @T.prim_func(s_tir=True, private=True)
    def embed(tokens: T.handle, table: T.handle, x: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        Tokens = T.match_buffer(tokens, (m,), "int32")
        Table = T.match_buffer(table, (vocab, dim), weight_dtype)
        X = T.match_buffer(x, (m, dim), "float32")
        for t in T.serial(m):
            for i in T.serial(dim // width):
                for j in T.vectorized(width):
                    X[t, i * width + j] = T.Cast(
                        "float32", Table[Tokens[t], i * width + j]
                    ) * T.float32(scale)

    return embed


@functools.cache
def last_row(dim: int):
    """y [1, D] = the last of the rows x [m, D]: prefill needs the logits of one position only."""

    @T.prim_func(s_tir=True, private=True)
    def last_row(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, dim), "float32")
        Y = T.match_buffer(y, (1, dim), "float32")
        for i in T.serial(dim):
            Y[0, i] = X[m - 1, i]

    return last_row
