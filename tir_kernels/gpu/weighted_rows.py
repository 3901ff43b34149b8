"""Sums of weighted rows by one CTA, with several rows of every thread on their way."""

from __future__ import annotations

from tvm.script import tirx as T

from ..vector_math import f32
from .vectors import vector_width


class WeightedRows:
    """sums = weights[r] * rows[r], added up over r; rows of ``columns`` elements of ``dtype``.

    Threads side by side take the vectors of a row; where a row has fewer vectors than the CTA has
    threads, ``groups`` of threads take rows in turn. A thread has ``accesses`` on their way, or all
    of its part of the ``most`` rows that there can be.
    ``element(operands, row, column)`` is a buffer and the indices of an element in it; it may be
    asked for rows behind the last.
    """

    def __init__(self, columns: int, dtype: str, threads: int, accesses: int, most: int, element):
        self.columns, self.threads = columns, threads
        self.width = width = vector_width(dtype, columns)
        narrow = vector_width("float32", width)
        self.vectors = vectors = columns // width
        self.groups = groups = max(1, threads // vectors)
        # Vectors of one thread, and rows that it has on their way.
        self.rounds = rounds = -(-vectors // threads)
        ahead = max(1, min(accesses // rounds, -(-most // groups)))
        self.sums = rounds * width
        self.ring = ahead * rounds * width
        self.step = step = ahead * groups

        def read(operands, row, column):
            buffer, indices = element(operands, row, column)
            return buffer[tuple(indices)]

        @T.inline
        def load(operands, Ring, u, row, tx):
            for i in T.unroll(rounds):
                for j in T.vectorized(width):
                    Ring[(u * rounds + i) * width + j] = read(operands, row, self.column(tx, i) + j)

        @T.inline
        def start(operands, Ring, tx):
            """Sends for the first rows, into Ring [ring]."""
            for u in T.unroll(ahead):
                load(operands, Ring, u, u * groups + self.group(tx), tx)

        @T.inline
        def add(operands, Ring, Weights, count, Sums, tx):
            """Sums [sums] += the rows; shared Weights are 0 up to the next multiple of ``step``."""
            weight = T.alloc_local((1,), "float32")
            for block in T.serial(T.ceildiv(count, step)):
                for u in T.unroll(ahead):
                    weight[0] = Weights[block * step + u * groups + self.group(tx)]
                    for i in T.unroll(rounds * width):
                        Sums[i] = Sums[i] + weight[0] * T.Cast(
                            "float32", Ring[u * rounds * width + i]
                        )
                    load(operands, Ring, u, (block + 1) * step + u * groups + self.group(tx), tx)

        @T.inline
        def store_own(Sums, Shared, Out, row, tx):
            for i in T.unroll(rounds):
                if self.vector(tx, i) < vectors:
                    for k in T.unroll(width // narrow):
                        for j in T.vectorized(narrow):
                            Out[row, self.column(tx, i) + k * narrow + j] = Sums[
                                i * width + k * narrow + j
                            ]

        @T.inline
        def store_joined(Sums, Shared, Out, row, tx):
            T.tvm_storage_sync("shared")
            if tx < groups * vectors:
                for j in T.unroll(width):
                    Shared[self.group(tx) * columns + self.column(tx, 0) + j] = Sums[j]
            T.tvm_storage_sync("shared")
            sums = T.alloc_local((1,), "float32")
            for i in T.serial(T.ceildiv(columns - tx, threads)):
                sums[0] = f32(0.0)
                for group in T.serial(groups):
                    sums[0] = sums[0] + Shared[group * columns + tx + i * threads]
                Out[row, tx + i * threads] = sums[0]

        self.start, self.add = start, add
        # (Sums, Shared, Out, row, tx): Out[row] = the sums; Shared [shared] is scratch.
        self.store = store_own if groups == 1 else store_joined
        self.shared = 1 if groups == 1 else groups * columns

    def vector(self, tx, i: int):
        """The number of a thread's vector ``i``; not below ``vectors`` if there is no such one."""
        return i * self.threads + (tx % self.vectors if self.groups > 1 else tx)

    def column(self, tx, i: int):
        """Where a thread's vector ``i`` begins, the last vector if there is no such one."""
        return T.min(self.vector(tx, i), self.vectors - 1) * self.width

    def group(self, tx):
        return T.min(tx // self.vectors, self.groups - 1) if self.groups > 1 else 0
