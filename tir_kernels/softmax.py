"""Softmax of a row in place, shared by attention and by the memory's features."""

from __future__ import annotations

from tvm.script import tirx as T

from .vector_math import exp, f32, largest, total


def row_softmax(width: int):
    """An inline: weights[row, 0:count] becomes its softmax, a partial sum per lane."""

    @T.inline
    def softmax(Weights, row, count):
        whole = count // width
        lanes = T.alloc_buffer((width,), "float32")
        scalar = T.alloc_buffer((1,), "float32")
        for j in T.vectorized(width):
            lanes[j] = Weights[row, 0]
        for i in T.serial(whole):
            for j in T.vectorized(width):
                lanes[j] = T.max(lanes[j], Weights[row, i * width + j])
        scalar[0] = largest([lanes[j] for j in range(width)])
        for k in T.serial(count - whole * width):
            scalar[0] = T.max(scalar[0], Weights[row, whole * width + k])
        for j in T.vectorized(width):
            lanes[j] = f32(0.0)
        for i in T.serial(whole):
            for j in T.vectorized(width):
                Weights[row, i * width + j] = exp(Weights[row, i * width + j] - scalar[0])
            for j in T.vectorized(width):
                lanes[j] = lanes[j] + Weights[row, i * width + j]
        for k in T.serial(count - whole * width):
            Weights[row, whole * width + k] = exp(Weights[row, whole * width + k] - scalar[0])
            lanes[0] = lanes[0] + Weights[row, whole * width + k]
        scalar[0] = f32(1.0) / total([lanes[j] for j in range(width)])
        for i in T.serial(whole):
            for j in T.vectorized(width):
                Weights[row, i * width + j] = Weights[row, i * width + j] * scalar[0]
        for k in T.serial(count - whole * width):
            Weights[row, whole * width + k] = Weights[row, whole * width + k] * scalar[0]

    return softmax
