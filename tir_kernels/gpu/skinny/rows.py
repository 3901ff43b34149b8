"""Activations that a product reads as they are: rows [batch, inputs] of the weights' type."""

from __future__ import annotations

from tvm.script import tirx as T

from .plan import Plan

_VECTOR = 8  # elements of 16 bytes


class Rows:
    """Operands are (X [batch, inputs],)."""

    found_bytes = 0

    def fits(self, plan: Plan) -> bool:
        return True

    def stage(self, plan: Plan):
        vectors = plan.chunk // _VECTOR
        count = plan.shape.batch * vectors

        @T.inline
        def stage(operands, Staged, first, tx):
            for i in T.serial(-(-count // plan.threads)):
                item: T.let = i * plan.threads + tx
                if item < count:
                    for j in T.vectorized(_VECTOR):
                        Staged[item // vectors, item % vectors * _VECTOR + j] = operands[0][
                            item // vectors, first + item % vectors * _VECTOR + j
                        ]

        return stage

    def prepare(self, batch: int, threads: int):
        @T.inline
        def prepare(operands, Found, tx):
            T.evaluate(0)

        return prepare

    def value(self, operands, Found, dtype: str, b, k):
        return T.Cast("float32", operands[0][b, k])
