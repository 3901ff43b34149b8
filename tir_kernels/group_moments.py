"""Mean and biased variance of a group of features, shared by layer norm and timestep decay norm."""

from __future__ import annotations

from tvm.script import tirx as T

from .vector_math import f32, total
from .vector_unit import VectorUnit


def group_moments(size: int, unit: VectorUnit):
    """An inline: moments of x[row, group * size : +size] into Mean and Var at [out_row, out_group].

    The variance comes from the deviations (two passes), so that a large mean costs no digits.
    """
    width = unit.fit(size)

    @T.inline
    def moments(X, row, group, Mean, Var, out_row, out_group):
        sums = T.alloc_buffer((width,), "float32")
        mean = T.alloc_buffer((1,), "float32")
        for j in T.vectorized(width):
            sums[j] = f32(0.0)
        for i in T.serial(size // width):
            for j in T.vectorized(width):
                sums[j] = sums[j] + X[row, group * size + i * width + j]
        mean[0] = total([sums[j] for j in range(width)]) / f32(size)
        for j in T.vectorized(width):
            sums[j] = f32(0.0)
        for i in T.serial(size // width):
            for j in T.vectorized(width):
                sums[j] = sums[j] + (X[row, group * size + i * width + j] - mean[0]) * (
                    X[row, group * size + i * width + j] - mean[0]
                )
        Mean[out_row, out_group] = mean[0]
        Var[out_row, out_group] = total([sums[j] for j in range(width)]) / f32(size)

    return moments
