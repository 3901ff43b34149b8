"""RMS and layer norm of the rows of a step, as the prologue of a product or by themselves.

Weights already have the one added that checkpoints leave out; the arithmetic is float32. Up to
``FUSED_ROWS`` rows every CTA of a product normalises for itself, which is cheaper than a launch;
more rows are normalised once, by a kernel of their own.
"""

from __future__ import annotations

import dataclasses
import functools

from tvm.script import tirx as T

from ...vector_math import f32, rsqrt, total
from ..reduce import WARP, cta_reduce
from .plan import Plan

FUSED_ROWS = 8
_THREADS = 256
_LOADED = 4  # rows whose features are in registers at a time


@dataclasses.dataclass(frozen=True)
class Norm:
    """A norm over each of ``groups`` groups of ``dim`` features; ``centred``: a layer norm."""

    dim: int
    groups: int
    eps: float
    centred: bool

    @property
    def size(self) -> int:
        """Features of a group."""
        return self.dim // self.groups

    def mean(self, sum):
        return sum / f32(self.size) if self.centred else f32(0.0)

    def scale(self, squares):
        """From the sum of squared deviations (of squares, for an RMS norm)."""
        return rsqrt(squares / f32(self.size) + f32(self.eps))

    def apply(self, x, mean, scale, parameters, k):
        """Feature k, normalised; ``parameters`` are the weight and, for a layer norm, the bias."""
        if self.centred:
            return (x - mean) * scale * parameters[0][k] + parameters[1][k]
        return x * scale * parameters[0][k]


@dataclasses.dataclass(frozen=True)
class Normalised:
    """Activations that a product normalises for itself.

    Operands are (X [batch, dim] float32, *parameters).
    """

    norm: Norm

    def fits(self, plan: Plan) -> bool:
        """Whether ``stage`` can fill shared memory at once: one group, one chunk."""
        return self.norm.groups == 1 and plan.chunks == 1

    def stage(self, plan: Plan):
        """Every thread holds its features of up to _LOADED rows in registers."""
        norm, threads, batch = self.norm, plan.threads, plan.shape.batch
        dtype = plan.shape.dtype
        rows = min(batch, _LOADED)
        width = next(n for n in (4, 2, 1) if norm.dim % (n * threads) == 0)
        own = norm.dim // threads
        reduce = cta_reduce(total, threads, rows)

        def feature(tx, i):
            """The thread's i-th run of ``width`` features."""
            return (i * threads + tx) * width

        def squared(x):
            return x * x

        @T.inline
        def stage(operands, Staged, first, tx):
            values = T.alloc_local((rows, own), "float32")
            mean = T.alloc_local((rows,), "float32")
            scale = T.alloc_local((rows,), "float32")
            rounded = T.alloc_local((width,), dtype)
            sums = T.alloc_shared((rows, threads // WARP), "float32")
            squares = T.alloc_shared((rows, threads // WARP), "float32")
            for b0 in T.serial(batch // rows):
                for b in T.unroll(rows):
                    for i in T.unroll(own // width):
                        for j in T.vectorized(width):
                            values[b, i * width + j] = operands[0][
                                b0 * rows + b, feature(tx, i) + j
                            ]
                for b in T.unroll(rows):
                    mean[b] = total([values[b, i] for i in range(own)])
                reduce(mean, sums, tx)
                for b in T.unroll(rows):
                    mean[b] = norm.mean(mean[b])
                    scale[b] = total([squared(values[b, i] - mean[b]) for i in range(own)])
                reduce(scale, squares, tx)
                for b in T.unroll(rows):
                    scale[b] = norm.scale(scale[b])
                    for i in T.unroll(own // width):
                        for j in T.unroll(width):
                            rounded[j] = T.Cast(
                                dtype,
                                norm.apply(
                                    values[b, i * width + j],
                                    mean[b],
                                    scale[b],
                                    operands[1:],
                                    feature(tx, i) + j,
                                ),
                            )
                        for j in T.vectorized(width):
                            Staged[b0 * rows + b, feature(tx, i) + j] = rounded[j]

        return stage

    @property
    def found_bytes(self) -> int:
        """Shared memory per batch row that ``prepare`` fills."""
        return 4 * 2 * self.norm.groups

    def prepare(self, batch: int, threads: int):
        """An inline (operands, Found, tx): mean and scale of each group into Found."""
        norm = self.norm
        of_group = statistics(norm, threads)

        @T.inline
        def prepare(operands, Found, tx):
            found = T.alloc_local((2,), "float32")
            for item in T.serial(batch * norm.groups):
                of_group(operands[0], item // norm.groups, item % norm.groups, tx, found)
                for i in T.unroll(2):
                    Found[item * 2 + i] = found[i]

        return prepare

    def value(self, operands, Found, dtype: str, b, k):
        """x[b, k], rounded to ``dtype`` as ``stage`` does."""
        group = b * self.norm.groups + k // self.norm.size
        mean, scale = Found[group * 2], Found[group * 2 + 1]
        exact = self.norm.apply(operands[0][b, k], mean, scale, operands[1:], k)
        return T.Cast("float32", T.Cast(dtype, exact))


def statistics(norm: Norm, threads: int):
    """An inline (X, b, group, tx, Found): mean and scale of a group of row b in Found [2].

    All ``threads`` of the CTA take part and get the result.
    """
    reduce = cta_reduce(total, threads)
    rounds = -(-norm.size // threads)

    @T.inline
    def one_group(X, b, group, tx, Found):
        partial = T.alloc_local((1,), "float32")
        sums = T.alloc_shared((1, threads // WARP), "float32")
        squares = T.alloc_shared((1, threads // WARP), "float32")
        partial[0] = f32(0.0)
        for i in T.serial(rounds):
            if i * threads + tx < norm.size:
                partial[0] = partial[0] + X[b, group * norm.size + i * threads + tx]
        reduce(partial, sums, tx)
        Found[0] = norm.mean(partial[0])
        partial[0] = f32(0.0)
        for i in T.serial(rounds):
            if i * threads + tx < norm.size:
                deviation: T.let = X[b, group * norm.size + i * threads + tx] - Found[0]
                partial[0] = partial[0] + deviation * deviation
        reduce(partial, squares, tx)
        Found[1] = norm.scale(partial[0])

    return one_group


def _row(norm: Norm, dtype: str):
    """An inline (X, parameters, Y, b, tx) for one row."""
    of_group = statistics(norm, _THREADS)

    @T.inline
    def row(X, parameters, Y, b, tx):
        found = T.alloc_local((2,), "float32")
        for group in T.serial(norm.groups):
            of_group(X, b, group, tx, found)
            for i in T.serial(-(-norm.size // _THREADS)):
                if i * _THREADS + tx < norm.size:
                    k: T.let = group * norm.size + i * _THREADS + tx
                    Y[b, k] = T.Cast(dtype, norm.apply(X[b, k], found[0], found[1], parameters, k))

    return row


@functools.cache
def rmsnorm_step(batch: int, norm: Norm, dtype: str):
    """y [batch, dim] of ``dtype`` from x [batch, dim] float32 and the norm's weight [dim]."""
    row = _row(norm, dtype)

    @T.prim_func(private=True)
    def rmsnorm_step(x: T.handle, weight: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        X = T.match_buffer(x, (batch, norm.dim), "float32")
        Weight = T.match_buffer(weight, (norm.dim,), "float32")
        Y = T.match_buffer(y, (batch, norm.dim), dtype)
        T.device_entry()
        b = T.cta_id([batch])
        tx = T.thread_id([_THREADS])
        row(X, (Weight,), Y, b, tx)

    return rmsnorm_step


@functools.cache
def layernorm_step(batch: int, norm: Norm, dtype: str):
    """y [batch, dim] of ``dtype`` from x [batch, dim] float32, the norm's weight and bias [dim]."""
    row = _row(norm, dtype)

    @T.prim_func(private=True)
    def layernorm_step(x: T.handle, weight: T.handle, bias: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        X = T.match_buffer(x, (batch, norm.dim), "float32")
        Weight = T.match_buffer(weight, (norm.dim,), "float32")
        Bias = T.match_buffer(bias, (norm.dim,), "float32")
        Y = T.match_buffer(y, (batch, norm.dim), dtype)
        T.device_entry()
        b = T.cta_id([batch])
        tx = T.thread_id([_THREADS])
        row(X, (Weight, Bias), Y, b, tx)

    return layernorm_step
