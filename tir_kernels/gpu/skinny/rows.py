"""Activations that a product reads as they are: rows [batch, inputs] of the weights' type."""

from __future__ import annotations

from tvm.script import tirx as T

from ..tensor_core import copy_async
from .plan import Plan

_VECTOR = 8  # elements of 16 bytes


class Rows:
    """Operands are (X [batch, inputs],)."""

    found_bytes = 0

    def fits(self, plan: Plan) -> bool:
        return True

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

    def prepare(self, batch: int, threads: int):
        @T.inline
        def prepare(operands, Found, tx):
            T.evaluate(0)

        return prepare

    def value(self, operands, Found, dtype: str, b, k):
        return T.Cast("float32", operands[0][b, k])
