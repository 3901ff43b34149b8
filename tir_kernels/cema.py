"""Complex exponential moving average: N damped, rotating recurrences per channel.

h_t[n] = q[n] h_{t-1}[n] + p[n] x_t,  y_t = Re(sum_n gamma[n] h_t[n]) + x_t, with p real, q and
gamma complex, all folded from alpha, delta and theta when the weights are converted.

On a CPU the recurrence costs seven vector instructions per mode and step with the channels across
the lanes, one or two percent of a layer, so time stays serial: the channels are what runs in
parallel. ``_MODES`` modes at a time keep state and coefficients in registers.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from .vector_math import total
from .vector_unit import VectorUnit

_MODES = 4


@functools.cache
def cema_prefill(dim: int, modes: int, layers: int, unit: VectorUnit):
    """m consecutive steps of one sequence: x, y [m, D]; state h [layers, slots, D, N, 2]."""
    width = unit.fit(dim)
    group = next(size for size in range(min(_MODES, modes), 0, -1) if modes % size == 0)

    @T.inline
    def recur(X, P, Q, Gamma, H, Y, layer, slot, m, c0, n0, first):
        hr = T.alloc_buffer((group, width), "float32")
        hi = T.alloc_buffer((group, width), "float32")
        qr = T.alloc_buffer((group, width), "float32")
        qi = T.alloc_buffer((group, width), "float32")
        p = T.alloc_buffer((group, width), "float32")
        gr = T.alloc_buffer((group, width), "float32")
        gi = T.alloc_buffer((group, width), "float32")
        turned = T.alloc_buffer((width,), "float32")
        for n in T.unroll(group):
            for j in T.unroll(width):
                hr[n, j] = H[layer, slot, c0 + j, n0 + n, 0]
                hi[n, j] = H[layer, slot, c0 + j, n0 + n, 1]
                qr[n, j] = Q[c0 + j, n0 + n, 0]
                qi[n, j] = Q[c0 + j, n0 + n, 1]
                p[n, j] = P[c0 + j, n0 + n]
                gr[n, j] = Gamma[c0 + j, n0 + n, 0]
                gi[n, j] = Gamma[c0 + j, n0 + n, 1]
        for t in T.serial(m):
            for n in T.unroll(group):
                for j in T.vectorized(width):
                    turned[j] = qr[n, j] * hr[n, j] + (p[n, j] * X[t, c0 + j] - qi[n, j] * hi[n, j])
                for j in T.vectorized(width):
                    hi[n, j] = qr[n, j] * hi[n, j] + qi[n, j] * hr[n, j]
                for j in T.vectorized(width):
                    hr[n, j] = turned[j]
            for j in T.vectorized(width):
                Y[t, c0 + j] = T.Select(first, X[t, c0 + j], Y[t, c0 + j]) + total(
                    [gr[n, j] * hr[n, j] - gi[n, j] * hi[n, j] for n in range(group)]
                )
        for n in T.unroll(group):
            for j in T.unroll(width):
                H[layer, slot, c0 + j, n0 + n, 0] = hr[n, j]
                H[layer, slot, c0 + j, n0 + n, 1] = hi[n, j]

    @T.prim_func(s_tir=True, private=True)
    def cema_prefill(
        x: T.handle,
        p: T.handle,
        q: T.handle,
        gamma: T.handle,
        slots: T.handle,
        h: T.handle,
        layer: T.int64,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (m, dim), "float32")
        P = T.match_buffer(p, (dim, modes), "float32")
        Q = T.match_buffer(q, (dim, modes, 2), "float32")
        Gamma = T.match_buffer(gamma, (dim, modes, 2), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        H = T.match_buffer(h, (layers, num_slots, dim, modes, 2), "float32")
        Y = T.match_buffer(y, (m, dim), "float32")
        for c in T.parallel(dim // width):
            recur(X, P, Q, Gamma, H, Y, layer, Slots[0], m, c * width, 0, True)
            for n in T.serial(modes // group - 1):
                recur(X, P, Q, Gamma, H, Y, layer, Slots[0], m, c * width, (n + 1) * group, False)

    return cema_prefill


@functools.cache
def cema_decode(dim: int, modes: int, layers: int, unit: VectorUnit):
    """One step of B sequences, each in its own slot: x, y [B, D].

    The modes lie side by side in memory, so here they, not the channels, go across the lanes.
    """
    block = next(size for size in range(min(64, dim), 0, -1) if dim % size == 0)
    lanes = unit.fit(modes)

    @T.inline
    def step(X, P, Q, Gamma, H, Y, layer, slot, b, c):
        terms = T.alloc_buffer((modes,), "float32")
        for n in T.serial(modes):
            real = (
                Q[c, n, 0] * H[layer, slot, c, n, 0]
                - Q[c, n, 1] * H[layer, slot, c, n, 1]
                + P[c, n] * X[b, c]
            )
            imag = Q[c, n, 0] * H[layer, slot, c, n, 1] + Q[c, n, 1] * H[layer, slot, c, n, 0]
            terms[n] = Gamma[c, n, 0] * real - Gamma[c, n, 1] * imag
            H[layer, slot, c, n, 0] = real
            H[layer, slot, c, n, 1] = imag
        sums = T.alloc_buffer((lanes,), "float32")
        for j in T.vectorized(lanes):
            sums[j] = terms[j]
        for i in T.serial(modes // lanes - 1):
            for j in T.vectorized(lanes):
                sums[j] = sums[j] + terms[(i + 1) * lanes + j]
        Y[b, c] = X[b, c] + total([sums[j] for j in range(lanes)])

    @T.prim_func(s_tir=True, private=True)
    def cema_decode(
        x: T.handle,
        p: T.handle,
        q: T.handle,
        gamma: T.handle,
        slots: T.handle,
        h: T.handle,
        layer: T.int64,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        batch = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (batch, dim), "float32")
        P = T.match_buffer(p, (dim, modes), "float32")
        Q = T.match_buffer(q, (dim, modes, 2), "float32")
        Gamma = T.match_buffer(gamma, (dim, modes, 2), "float32")
        Slots = T.match_buffer(slots, (batch,), "int32")
        H = T.match_buffer(h, (layers, num_slots, dim, modes, 2), "float32")
        Y = T.match_buffer(y, (batch, dim), "float32")
        for item in T.parallel(batch * (dim // block)):
            b = item // (dim // block)
            for i in T.serial(block):
                step(X, P, Q, Gamma, H, Y, layer, Slots[b], b, item % (dim // block) * block + i)

    return cema_decode
