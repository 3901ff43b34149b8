"""One head of one row on the lanes of a warp: what attention makes of the shared projection z.

A lane holds vectors of one access each, dealt to the lanes in turn, so that the same lanes read a
key of the ring in whole lines. A head that needs fewer than 32 lanes is held several times over.
"""

from __future__ import annotations

import dataclasses

from tvm.script import tirx as T

from ..attention_inputs import rotated
from ..vector_math import f32, largest, rsqrt, total
from .reduce import WARP, warp_reduce
from .vectors import Vectors, vector_width


@dataclasses.dataclass(frozen=True)
class HeadLanes:
    """How ``z_head`` features lie on lanes as vectors of ``width`` elements."""

    z_head: int
    width: int

    @property
    def vectors(self) -> int:
        return self.z_head // self.width

    @property
    def lanes(self) -> int:
        """Lanes of one head: a power of two."""
        return min(WARP, 1 << (self.vectors - 1).bit_length())

    @property
    def slices(self) -> int:
        """Vectors of one lane."""
        return -(-self.vectors // self.lanes)

    @property
    def held(self) -> int:
        """Features of one lane; those past the head's last are 0."""
        return self.slices * self.width

    def vector(self, lane, s):
        """The number of a lane's vector ``s``; not below ``vectors`` if there is no such vector."""
        return s * self.lanes + lane % self.lanes

    def first(self, lane, s):
        """First feature of a lane's vector ``s``, of the last vector if there is no such vector."""
        return T.min(self.vector(lane, s), self.vectors - 1) * self.width

    def within(self, lane, i, value, otherwise):
        """``value`` where the lane's feature ``i`` exists."""
        return T.Select(self.vector(lane, i // self.width) < self.vectors, value, otherwise)


def head_lanes(z_head: int, dtype: str) -> HeadLanes:
    return HeadLanes(z_head, vector_width(dtype, z_head))


class HeadTransform:
    """Inlines on local float32 buffers [held]; all lanes of a warp call them together."""

    def __init__(self, layout: HeadLanes, heads: int, rope_heads: int, eps: float):
        z_head, held, width = layout.z_head, layout.held, layout.width
        vectors = Vectors(width, "float32")
        add, highest = warp_reduce(total, layout.lanes), warp_reduce(largest, layout.lanes)

        @T.inline
        def normalise(Z):
            """Z divided by its root mean square."""
            scale = T.alloc_local((1,), "float32")
            scale[0] = total([Z[i] * Z[i] for i in range(held)])
            add(scale)
            scale[0] = rsqrt(scale[0] / f32(z_head) + f32(eps))
            for i in T.unroll(held):
                Z[i] = Z[i] * scale[0]

        @T.inline
        def affine(Z, Gamma, Beta, which, head, lane, Out):
            """Out = Z * gamma + beta of projection ``which``."""
            factor = T.alloc_local((held,), "float32")
            for s in T.unroll(layout.slices):
                column = T.meta_var(head * z_head + layout.first(lane, s))
                vectors.load_row(factor, s * width, Gamma, which, column)
                vectors.load_row(Out, s * width, Beta, which, column)
            for i in T.unroll(held):
                Out[i] = layout.within(lane, i, Z[i] * factor[i] + Out[i], f32(0.0))

        @T.inline
        def copy(X, Rope, angle, head, lane, Out):
            for i in T.unroll(held):
                Out[i] = X[i]

        @T.inline
        def turn(X, Rope, angle, head, lane, Out):
            table = T.alloc_local((held,), "float32")
            for s in T.unroll(layout.slices):
                vectors.load_row(table, s * width, Rope, angle, layout.first(lane, s))
            for i in T.unroll(held // 2):
                pair = T.meta_var(rotated(X[2 * i], X[2 * i + 1], table[2 * i], table[2 * i + 1]))
                Out[2 * i] = pair[0]
                Out[2 * i + 1] = pair[1]

        @T.inline
        def turn_first(X, Rope, angle, head, lane, Out):
            if head < rope_heads:
                turn(X, Rope, angle, head, lane, Out)
            else:
                copy(X, Rope, angle, head, lane, Out)

        @T.inline
        def softmax(X, lane):
            """X becomes its softmax over the head's features."""
            scalar = T.alloc_local((1,), "float32")
            for i in T.unroll(held):
                X[i] = layout.within(lane, i, X[i], T.min_value("float32"))
            scalar[0] = largest([X[i] for i in range(held)])
            highest(scalar)
            for i in T.unroll(held):
                X[i] = T.exp(X[i] - scalar[0])
            scalar[0] = total([X[i] for i in range(held)])
            add(scalar)
            for i in T.unroll(held):
                X[i] = X[i] / scalar[0]

        self.normalise, self.affine, self.softmax = normalise, affine, softmax
        # Out = X turned by row ``angle`` of the table [2C, 2 ceil(zh/2)], in the rotary heads.
        if rope_heads == 0:
            self.rotate = copy
        else:
            self.rotate = turn if rope_heads == heads else turn_first
