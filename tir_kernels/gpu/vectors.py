"""Wide memory accesses: how many elements one moves, and copies between memory and registers."""

from __future__ import annotations

import math

from tvm.script import tirx as T

_BYTES = {"float32": 4, "int32": 4, "float16": 2, "bfloat16": 2}
_ACCESS = 16  # bytes: the widest load and store of a thread


def vector_width(dtype: str, *strides: int) -> int:
    """Elements of one access, such that every multiple of all ``strides`` begins one."""
    return math.gcd(_ACCESS // _BYTES[dtype], *strides)


class Vectors:
    """Inlines that move ``count`` adjacent elements of ``dtype``, in accesses as wide as possible.

    They begin at a multiple of ``count``. Local buffers are flat.
    """

    def __init__(self, count: int, dtype: str):
        width = vector_width(dtype, count)

        @T.inline
        def load(Local, at, Source, first):
            """Local[at : at + count] = Source[first : first + count]."""
            for k in T.unroll(count // width):
                for j in T.vectorized(width):
                    Local[at + k * width + j] = Source[first + k * width + j]

        @T.inline
        def load_row(Local, at, Source, row, first):
            """Local[at : at + count] = Source[row, first : first + count]."""
            for k in T.unroll(count // width):
                for j in T.vectorized(width):
                    Local[at + k * width + j] = Source[row, first + k * width + j]

        @T.inline
        def store_row(Target, row, first, Local, at):
            """Target[row, first : first + count] = Local[at : at + count]."""
            for k in T.unroll(count // width):
                for j in T.vectorized(width):
                    Target[row, first + k * width + j] = Local[at + k * width + j]

        self.load, self.load_row, self.store_row = load, load_row, store_row
