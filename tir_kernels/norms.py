"""Group RMS norm and group layer norm over features, a row at a time, for the CPU."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .group_moments import group_moments
from .vector_math import f32, rsqrt, total
from .vector_unit import VectorUnit


@functools.cache
def rms_norm(dim: int, groups: int, eps: float, unit: VectorUnit):
    """y = x * rsqrt(mean(x^2) + eps) * weight over each group of dim/groups features.

    x, y [m, D]; weight [D] already has the one added that checkpoints leave out.
    """
    size = dim // groups
    width = unit.fit(size)

    @T.inline
    def normalise(X, W, Y, row, group):
        squares = T.alloc_buffer((width,), "float32")
        for j in T.vectorized(width):
            squares[j] = f32(0.0)
        for i in T.serial(size // width):
            for j in T.vectorized(width):
                squares[j] = squares[j] + (
                    X[row, group * size + i * width + j] * X[row, group * size + i * width + j]
                )
        scale = T.alloc_buffer((1,), "float32")
        scale[0] = rsqrt(total([squares[j] for j in range(width)]) / f32(size) + f32(eps))
        for i in T.serial(size // width):
            for j in T.vectorized(width):
                Y[row, group * size + i * width + j] = (
                    X[row, group * size + i * width + j]
                    * scale[0]
                    * W[group * size + i * width + j]
                )

    @T.prim_func(s_tir=True, private=True)
    def rmsnorm(x: T.handle, weight: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        Y = T.match_buffer(y, (m, dim), "float32")
        if m == 1:
            for group in T.serial(groups):
                normalise(X, W, Y, 0, group)
        else:
            for row in T.parallel(m):
                for group in T.serial(groups):
                    normalise(X, W, Y, row, group)

    return rmsnorm


@functools.cache
def layer_norm(dim: int, groups: int, eps: float, unit: VectorUnit):
    """y = (x - mean) * rsqrt(var + eps) * weight + bias over each group of dim/groups features.

    x, y [m, D]; weight [D] already has the one added that checkpoints leave out; the variance is
    the biased one.
    """
    size = dim // groups
    width = unit.fit(size)
    moments = group_moments(size, unit)

    @T.inline
    def normalise(X, W, B, Y, row, group):
        mean = T.alloc_buffer((1, 1), "float32")
        scale = T.alloc_buffer((1, 1), "float32")
        moments(X, row, group, mean, scale, 0, 0)
        scale[0, 0] = rsqrt(scale[0, 0] + f32(eps))
        for i in T.serial(size // width):
            for j in T.vectorized(width):
                Y[row, group * size + i * width + j] = (
                    X[row, group * size + i * width + j] - mean[0, 0]
                ) * scale[0, 0] * W[group * size + i * width + j] + B[group * size + i * width + j]

    @T.prim_func(s_tir=True, private=True)
    def layernorm(x: T.handle, weight: T.handle, bias: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        X = T.match_buffer(x, (m, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        Y = T.match_buffer(y, (m, dim), "float32")
        if m == 1:
            for group in T.serial(groups):
                normalise(X, W, B, Y, 0, group)
        else:
            for row in T.parallel(m):
                for group in T.serial(groups):
                    normalise(X, W, B, Y, row, group)

    return layernorm
