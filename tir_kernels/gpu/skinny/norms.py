"""RMS and layer norm of the rows of a step, as the prologue of a product or by themselves.

Weights already have the one added that checkpoints leave out; the arithmetic is float32. A few rows
(``norms_fused``) every CTA of a product normalises for itself, which is cheaper than a launch; more
rows are normalised once, by a kernel of their own.
"""

from __future__ import annotations

import dataclasses
import functools

from tvm.script import tirx as T

from ...vector_math import f32, rsqrt, total
from ..dependent_launch import DependentLaunch
from ..reduce import WARP, cta_reduce
from ..unit import GpuUnit
from . import cooperative
from .plan import Plan, Spread, spread_for, takes
from .simt import SimtPlan, holds

_FUSED_ROWS = 8
_THREADS = 512
_LOADED = 4  # rows whose features are in registers at a time
_VECTOR = 4  # floats of 16 bytes


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

    @property
    def in_vectors(self) -> bool:
        """Whether ``whole_rows`` can do it."""
        return self.groups == 1 and self.dim % _VECTOR == 0

    def mean(self, sum):
        return sum / f32(self.size) if self.centred else f32(0.0)

    def scale(self, squares):
        """From the sum of squared deviations (of squares, for an RMS norm)."""
        return rsqrt(squares / f32(self.size) + f32(self.eps))

    @property
    def num_parameters(self) -> int:
        return 2 if self.centred else 1

    def apply(self, x, mean, scale, parameters):
        """x normalised; ``parameters`` are its weight and, for a layer norm, its bias."""
        if self.centred:
            return (x - mean) * scale * parameters[0] + parameters[1]
        return x * scale * parameters[0]


def norms_fused(
    batch: int, norm: Norm, dtype: str, unit: GpuUnit, spread: Spread | None = None
) -> bool:
    """Whether a product normalises its own activations: whole rows, in shared memory at once."""
    if batch > _FUSED_ROWS or not norm.in_vectors:
        return False
    if cooperative.takes(batch, norm.dim, dtype, unit):
        return False
    if unit.ptx and takes(norm.dim, dtype):
        return (spread or spread_for(batch, unit)).stages(batch, norm.dim)
    return holds(batch, norm.dim, dtype, unit)


def whole_rows(norm: Norm, threads: int, rows: int, dtype: str):
    """An inline (operands, b, Y, tx): rows b to b + rows - 1 normalised into the same rows of Y.

    For one group. All ``threads`` take part; each holds its features of these rows in registers.
    """
    runs = -(-norm.dim // (_VECTOR * threads))
    own = runs * _VECTOR
    reduce = cta_reduce(total, threads, rows)

    def feature(tx, i):
        """The first of the thread's i-th run of features, and whether there is such a run."""
        first = (i * threads + tx) * _VECTOR
        return first, first < norm.dim

    def element(X, row, k):
        return X[k] if row is None else X[row, k]

    @T.inline
    def load(X, row, values, at, tx):
        for i in T.unroll(runs):
            if feature(tx, i)[1]:
                for j in T.vectorized(_VECTOR):
                    values[at, i * _VECTOR + j] = element(X, row, feature(tx, i)[0] + j)
            else:
                for j in T.unroll(_VECTOR):
                    values[at, i * _VECTOR + j] = f32(0.0)

    @T.inline
    def write(values, parameters, mean, scale, at, Y, row, tx):
        rounded = T.alloc_local((_VECTOR,), dtype)
        for i in T.unroll(runs):
            for j in T.unroll(_VECTOR):
                own_parameters = T.meta_var(
                    [parameters[n, i * _VECTOR + j] for n in range(norm.num_parameters)]
                )
                rounded[j] = T.Cast(
                    dtype,
                    norm.apply(values[at, i * _VECTOR + j], mean[at], scale[at], own_parameters),
                )
            if feature(tx, i)[1]:
                for j in T.vectorized(_VECTOR):
                    Y[row, feature(tx, i)[0] + j] = rounded[j]

    def squared_deviation(values, mean, at, i, tx):
        deviation = values[at, i] - mean[at]
        return T.Select(feature(tx, i // _VECTOR)[1], deviation * deviation, f32(0.0))

    @T.inline
    def normalise(operands, b, Y, tx):
        values = T.alloc_local((rows, own), "float32")
        parameters = T.alloc_local((norm.num_parameters, own), "float32")
        mean = T.alloc_local((rows,), "float32")
        scale = T.alloc_local((rows,), "float32")
        sums = T.alloc_shared((rows, threads // WARP), "float32")
        squares = T.alloc_shared((rows, threads // WARP), "float32")
        # The weight and, for a layer norm, the bias, under way beside the activations.
        load(operands[1], None, parameters, 0, tx)
        load(operands[-1], None, parameters, norm.num_parameters - 1, tx)
        for at in T.unroll(rows):
            load(operands[0], b + at, values, at, tx)
        for at in T.unroll(rows):
            mean[at] = total([values[at, i] for i in range(own)])
        reduce(mean, sums, tx)
        for at in T.unroll(rows):
            mean[at] = norm.mean(mean[at])
            scale[at] = total([squared_deviation(values, mean, at, i, tx) for i in range(own)])
        reduce(scale, squares, tx)
        for at in T.unroll(rows):
            scale[at] = norm.scale(scale[at])
            write(values, parameters, mean, scale, at, Y, b + at, tx)

    return normalise


@dataclasses.dataclass(frozen=True)
class Normalised:
    """Activations that a product normalises for itself.

    Operands are (X [batch, dim] float32, *parameters).
    """

    norm: Norm

    def stage(self, plan: Plan | SimtPlan):
        """An inline (operands, Staged, tx): all activations into Staged [batch, stride]."""
        rows = min(plan.shape.batch, _LOADED)
        normalise = whole_rows(self.norm, plan.threads, rows, plan.shape.dtype)

        @T.inline
        def stage(operands, Staged, tx):
            for b in T.serial(plan.shape.batch // rows):
                normalise(operands, b * rows, Staged, tx)

        return stage

    def copy(self, plan: Plan):
        """Nothing: ``stage`` brings all there is."""

    def stage_chunk(self, plan: SimtPlan):
        """An inline (operands, Staged, first, tx): all inputs, there is one chunk."""
        stage = self.stage(plan)

        @T.inline
        def stage_chunk(operands, Staged, first, tx):
            stage(operands, Staged, tx)

        return stage_chunk


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


def _row(norm: Norm, dtype: str, threads: int):
    """An inline (operands, b, Y, tx) for one row by so many threads."""
    if norm.in_vectors:
        return whole_rows(norm, threads, 1, dtype)
    of_group = statistics(norm, threads)

    @T.inline
    def row(operands, b, Y, tx):
        found = T.alloc_local((2,), "float32")
        for group in T.serial(norm.groups):
            of_group(operands[0], b, group, tx, found)
            for i in T.serial(-(-norm.size // threads)):
                if i * threads + tx < norm.size:
                    k: T.let = group * norm.size + i * threads + tx
                    own = T.meta_var([parameter[k] for parameter in operands[1:]])
                    Y[b, k] = T.Cast(dtype, norm.apply(operands[0][b, k], found[0], found[1], own))

    return row


@functools.cache
def rmsnorm_step(batch: int, norm: Norm, dtype: str, unit: GpuUnit):
    """y [batch, dim] of ``dtype`` from x [batch, dim] float32 and the norm's weight [dim]."""
    threads = unit.cta(_THREADS)
    row = _row(norm, dtype, threads)
    launch = DependentLaunch(unit.dependent_launch)

    @T.prim_func(private=True)
    def rmsnorm_step(x: T.handle, weight: T.handle, y: T.handle):
        T.func_attr(launch.attributes)
        X = T.match_buffer(x, (batch, norm.dim), "float32")
        Weight = T.match_buffer(weight, (norm.dim,), "float32")
        Y = T.match_buffer(y, (batch, norm.dim), dtype)
        T.device_entry()
        b = T.cta_id([batch])
        tx = T.thread_id([threads])
        launch.wait()
        row((X, Weight), b, Y, tx)

    return rmsnorm_step


@functools.cache
def layernorm_step(batch: int, norm: Norm, dtype: str, unit: GpuUnit):
    """y [batch, dim] of ``dtype`` from x [batch, dim] float32, the norm's weight and bias [dim]."""
    threads = unit.cta(_THREADS)
    row = _row(norm, dtype, threads)
    launch = DependentLaunch(unit.dependent_launch)

    @T.prim_func(private=True)
    def layernorm_step(x: T.handle, weight: T.handle, bias: T.handle, y: T.handle):
        T.func_attr(launch.attributes)
        X = T.match_buffer(x, (batch, norm.dim), "float32")
        Weight = T.match_buffer(weight, (norm.dim,), "float32")
        Bias = T.match_buffer(bias, (norm.dim,), "float32")
        Y = T.match_buffer(y, (batch, norm.dim), dtype)
        T.device_entry()
        b = T.cta_id([batch])
        tx = T.thread_id([threads])
        launch.wait()
        row((X, Weight, Bias), b, Y, tx)

    return layernorm_step
