"""Linear layers y[m, n] = sum_k a[m, k] w[n, k] with a fused ending, for the CPU.

Weights are packed beforehand into panels ``[N/panel, K, panel]``: a panel streams through the
cache once, whatever the number of rows, so one kernel serves prefill and decode. Panels run in
parallel. 16-bit weights are widened as they are loaded; sums are float32.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .register_tile import panel_store, row_tiles
from .vector_math import silu
from .vector_unit import VectorUnit


def num_panels(outputs: int, unit: VectorUnit, gated: bool = False) -> int:
    """Panels of a packed weight with ``outputs`` columns (of each of its halves when ``gated``)."""
    return -(-outputs // (unit.lanes if gated else unit.panel))


def _left(operands, row, k):
    return operands[1][row, k]


def _right(operands, k, column):
    return T.Cast("float32", operands[2][operands[0], k, column])


def _linear_rows(outputs: int, unit: VectorUnit, finish):
    """Rows of one panel; operands are (panel, a, w, y, *extra).

    ``finish(value, row, column, extra)`` maps a finished sum to the element of y it becomes.
    """

    @T.inline
    def write(operands, row, column, value):
        y = operands[3]
        y[row, column] = finish(value, row, column, operands[4:])

    return row_tiles(unit, _left, _right, panel_store(outputs, unit, write))


@functools.cache
def linear(inputs: int, outputs: int, weight_dtype: str, unit: VectorUnit):
    """y [m, N] = a [m, K] @ w^T; the output layer."""
    panels = num_panels(outputs, unit)
    rows = _linear_rows(outputs, unit, lambda value, row, column, extra: value)

    @T.prim_func(s_tir=True, private=True)
    def logits(a: T.handle, w: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y), 0, m, inputs)

    return logits


@functools.cache
def linear_bias_silu(
    inputs: int, outputs: int, gates: tuple[int, int], weight_dtype: str, unit: VectorUnit
):
    """y = a @ w^T + bias, with silu on columns gates[0] to gates[1] (wv; wz, wr and wh1 as one)."""
    panels = num_panels(outputs, unit)
    first, last = gates

    def finish(value, row, column, extra):
        biased = value + extra[0][column]
        if (first, last) == (0, outputs):
            return silu(biased)
        return T.Select(T.And(column >= first, column < last), silu(biased), biased)

    rows = _linear_rows(outputs, unit, finish)

    @T.prim_func(s_tir=True, private=True)
    def bias_silu(a: T.handle, w: T.handle, b: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        B = T.match_buffer(b, (outputs,), "float32")
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y, B), 0, m, inputs)

    return bias_silu


@functools.cache
def linear_block_output(
    inputs: int, outputs: int, offset: int, width: int, weight_dtype: str, unit: VectorUnit
):
    """out = gated @ wh2^T + h1 + x; h1 stands at column ``offset`` of the wz|wr|wh1 product."""
    panels = num_panels(outputs, unit)

    def finish(value, row, column, extra):
        projected, residual = extra
        return value + projected[row, offset + column] + residual[row, column]

    rows = _linear_rows(outputs, unit, finish)

    @T.prim_func(s_tir=True, private=True)
    def wh2(a: T.handle, w: T.handle, h: T.handle, x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        Projected = T.match_buffer(h, (m, width), "float32")
        X = T.match_buffer(x, (m, outputs), "float32")
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y, Projected, X), 0, m, inputs)

    return wh2


@functools.cache
def linear_silu(inputs: int, outputs: int, weight_dtype: str, unit: VectorUnit):
    """hid = silu(fc1 a); the feed-forward network without swiglu."""
    panels = num_panels(outputs, unit)
    rows = _linear_rows(outputs, unit, lambda value, row, column, extra: silu(value))

    @T.prim_func(s_tir=True, private=True)
    def fc1(a: T.handle, w: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y), 0, m, inputs)

    return fc1


@functools.cache
def linear_swiglu(inputs: int, outputs: int, weight_dtype: str, unit: VectorUnit):
    """hid = silu(fc1 a) * fc3 a; a panel interleaves ``lanes`` columns of fc1 and of fc3."""
    lanes = unit.lanes
    panels = num_panels(outputs, unit, gated=True)

    @T.inline
    def store(operands, acc0, acc1, r, row):
        y = operands[3]
        gated = T.alloc_buffer((lanes,), "float32")
        for j in T.vectorized(lanes):
            gated[j] = silu(acc0[r, j]) * acc1[r, j]
        if outputs % lanes == 0:
            for j in T.vectorized(lanes):
                y[row, operands[0] * lanes + j] = gated[j]
        else:
            for j in T.serial(T.min(lanes, outputs - operands[0] * lanes)):
                y[row, operands[0] * lanes + j] = gated[j]

    rows = row_tiles(unit, _left, _right, store)

    @T.prim_func(s_tir=True, private=True)
    def fc1(a: T.handle, w: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y), 0, m, inputs)

    return fc1


@functools.cache
def linear_residual(inputs: int, outputs: int, weight_dtype: str, unit: VectorUnit):
    """y = a @ w^T + residual (fc2)."""
    panels = num_panels(outputs, unit)
    rows = _linear_rows(
        outputs, unit, lambda value, row, column, extra: value + extra[0][row, column]
    )

    @T.prim_func(s_tir=True, private=True)
    def fc2(a: T.handle, w: T.handle, x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        X = T.match_buffer(x, (m, outputs), "float32")
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y, X), 0, m, inputs)

    return fc2


@functools.cache
def linear_scaled_residual(inputs: int, outputs: int, weight_dtype: str, unit: VectorUnit):
    """y = alpha * (a @ w^T) + residual (fc2 with rescale_nffn), alpha [N]."""
    panels = num_panels(outputs, unit)

    def finish(value, row, column, extra):
        residual, alpha = extra
        return alpha[column] * value + residual[row, column]

    rows = _linear_rows(outputs, unit, finish)

    @T.prim_func(s_tir=True, private=True)
    def fc2(a: T.handle, w: T.handle, x: T.handle, scale: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        A = T.match_buffer(a, (m, inputs), "float32")
        W = T.match_buffer(w, (panels, inputs, unit.panel), weight_dtype)
        X = T.match_buffer(x, (m, outputs), "float32")
        Alpha = T.match_buffer(scale, (outputs,), "float32")
        Y = T.match_buffer(y, (m, outputs), "float32")
        for panel in T.parallel(panels):
            rows((panel, A, W, Y, X, Alpha), 0, m, inputs)

    return fc2


@functools.cache
def pack(weight_dtype: str, unit: VectorUnit, gated: bool):
    """Panels [P, K, panel] from a matrix [N, K] as the checkpoint has it; padding is zero.

    With ``gated`` the matrix is fc1 over fc3 (N = 2F) and a panel holds the same ``lanes``
    columns of both.
    """
    lanes = unit.lanes

    @T.prim_func(s_tir=True, private=True)
    def pack_matrix(w: T.handle, p: T.handle):
        T.func_attr({"tirx.noalias": True})
        n = T.int32()
        k = T.int32()
        panels = T.int32()
        W = T.match_buffer(w, (n, k), weight_dtype)
        P = T.match_buffer(p, (panels, k, unit.panel), weight_dtype)
        for panel in T.parallel(panels):
            for i in T.serial(k):
                for j in T.unroll(unit.panel):
                    if gated:
                        P[panel, i, j] = T.if_then_else(
                            panel * lanes + j % lanes < n // 2,
                            W[j // lanes * (n // 2) + panel * lanes + j % lanes, i],
                            T.Cast(weight_dtype, 0),
                        )
                    else:
                        P[panel, i, j] = T.if_then_else(
                            panel * unit.panel + j < n,
                            W[panel * unit.panel + j, i],
                            T.Cast(weight_dtype, 0),
                        )

    return pack_matrix
