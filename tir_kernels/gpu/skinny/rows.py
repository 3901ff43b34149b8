"""Activations that a product reads as they are: rows [batch, inputs] of the weights' type."""

from __future__ import annotations

from tvm.script import tirx as T

from ..tensor_core import copy_async
from .plan import Plan
from .simt import SimtPlan

_VECTOR = 8  # elements of 16 bytes
_UNROLLED = 8  # loads of a thread that are sent off together


class Rows:
    """Operands are (X [batch, inputs],)."""

    def stage(self, plan: Plan):
        """An inline (inputs, Staged, tx): the first chunk into Staged [batch, stride]."""
        vectors = plan.chunk // _VECTOR
        count = plan.shape.batch * vectors

        @T.inline
        def stage(inputs, Staged, tx):
            for i in T.serial(-(-count // plan.threads)):
                item: T.let = i * plan.threads + tx
                if item < count:
                    for j in T.vectorized(_VECTOR):
                        Staged[item // vectors, item % vectors * _VECTOR + j] = inputs[0][
                            item // vectors, item % vectors * _VECTOR + j
                        ]

        return stage

    def copy(self, plan: Plan):
        """An inline (inputs, Staged, buffer, first, tx): a chunk into a buffer, asynchronously."""
        vectors = plan.chunk // _VECTOR
        count = plan.shape.batch * vectors

        @T.inline
        def copy(inputs, Staged, buffer, first, tx):
            for i in T.serial(-(-count // plan.threads)):
                item: T.let = i * plan.threads + tx
                if item < count:
                    copy_async(
                        Staged.ptr_to([buffer, item // vectors, item % vectors * _VECTOR]),
                        inputs[0].ptr_to([item // vectors, first + item % vectors * _VECTOR]),
                    )

        return copy

    def stage_chunk(self, plan: SimtPlan):
        """An inline (inputs, Staged, first, tx): inputs from ``first`` on into Staged."""
        width, vectors = plan.width, plan.stride // plan.width
        count = plan.shape.batch * vectors
        rounds = -(-count // plan.threads)
        loop = T.unroll if rounds <= _UNROLLED else T.serial

        @T.inline
        def stage_chunk(inputs, Staged, first, tx):
            for i in loop(rounds):
                item = T.meta_var(i * plan.threads + tx)
                k = T.meta_var(item % vectors * width)
                if T.And(item < count, first + k < plan.shape.inputs):
                    for j in T.vectorized(width):
                        Staged[item // vectors, k + j] = inputs[0][item // vectors, first + k + j]

        return stage_chunk
