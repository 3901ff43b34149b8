"""The complex EMA of m consecutive steps by its recurrence, in float32: any shape, any dtype.

h_t[n] = q[n] h_{t-1}[n] + p[n] x_t,  y_t = Re(sum_n gamma[n] h_t[n]) + x_t, as in
``tir_kernels.cema``. A CTA takes ``_CHANNELS`` channels and all of the time, cut into blocks that
run side by side: the state of each block from zero, the states between the blocks, then each
block again from the state before it. The states between never leave shared memory.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32, total
from .reduce import warp_reduce
from .unit import GpuUnit

_CHANNELS = 16  # of a CTA: 32 bytes of a row of half precision
_THREADS = 512
_THREAD_MODES = 8  # at most, so that state and coefficients stay in registers
_AHEAD = 8  # steps whose x a thread fetches together


@functools.cache
def recurrence(dim: int, modes: int, layers: int, dtype: str, unit: GpuUnit):
    """x, y [m, D]; p [D, N], q and gamma [D, N, 2]; state h [layers, slots, D, N, 2]."""
    # The modes of a channel are spread over adjacent lanes: lane s has modes s, s + spread, ...
    spread = 1 << (-(-modes // _THREAD_MODES) - 1).bit_length()
    own = -(-modes // spread)  # modes of a thread, which leaves their states in shared memory
    most = unit.cta(_THREADS)
    channels = min(_CHANNELS, most // spread)
    lanes = channels * spread  # threads of a block
    blocks = min(most, unit.room(most) // (8 * own)) // lanes
    threads = blocks * lanes
    reduce = warp_reduce(total, spread)

    def mode(k, lane):
        """The number of a lane's mode ``k``; not below ``modes`` if there is no such mode."""
        return k * spread + lane % spread

    @T.inline
    def load(Coefficients, parts, into, c, lane):
        """``into`` [own, parts] = the coefficients of a lane's modes; zero where there is none."""
        for k in T.unroll(own):
            if mode(k, lane) < modes:
                for part in T.vectorized(parts):
                    into[k * parts + part] = Coefficients[
                        (c * modes + mode(k, lane)) * parts + part
                    ]
            else:
                for part in T.unroll(parts):
                    into[k * parts + part] = f32(0.0)

    @T.inline
    def follow(X, c, first, length, m, advance):
        """``advance(t, x)`` for each step t of a block, and a few more, all threads together."""
        raw = T.alloc_local((_AHEAD,), dtype)
        for some in T.serial(T.ceildiv(length, _AHEAD)):
            for u in T.unroll(_AHEAD):
                raw[u] = X[T.min(first + some * _AHEAD + u, m - 1), c]
            for u in T.unroll(_AHEAD):
                advance(some * _AHEAD + u, T.Cast("float32", raw[u]))

    @T.inline
    def ends(X, Ps, Qs, States, c, block, lane, length, steps, m):
        """States[block] = the state at the end of the block, from zero at its start."""
        h = T.alloc_local((2 * own,), "float32")
        q = T.alloc_local((2 * own,), "float32")
        p = T.alloc_local((own,), "float32")
        load(Qs, 2, q, c, lane)
        load(Ps, 1, p, c, lane)
        for k in T.unroll(2 * own):
            h[k] = f32(0.0)

        @T.inline
        def advance(t, x):
            if t < steps:
                for k in T.unroll(own):
                    re, im = T.meta_var(2 * k), T.meta_var(2 * k + 1)
                    turned: T.float32 = q[re] * h[re] + (x - q[im] * h[im])
                    h[im] = q[re] * h[im] + q[im] * h[re]
                    h[re] = turned

        follow(X, c, block * length, length, m, advance)
        for k in T.unroll(own):
            for part in T.unroll(2):
                States[block, k, lane, part] = p[k] * h[2 * k + part]

    @T.inline
    def carry(Qs, States, H, layer, slot, c0, length, tx):
        """States[block] becomes the state before the block."""
        q = T.alloc_local((2,), "float32")
        decay = T.alloc_local((2,), "float32")
        h = T.alloc_local((2,), "float32")
        for i in T.serial(T.ceildiv(own * lanes, threads)):
            item = T.meta_var(i * threads + tx)
            k = T.meta_var(item // lanes)
            lane = T.meta_var(item % lanes)
            c = T.meta_var(c0 + lane // spread)
            if T.And(item < own * lanes, T.And(c < dim, mode(k, lane) < modes)):
                for part in T.vectorized(2):
                    q[part] = Qs[(c * modes + mode(k, lane)) * 2 + part]
                for part in T.vectorized(2):
                    h[part] = H[layer, slot, c, mode(k, lane), part]
                # q^length, as exact as the recurrence itself: powers by squaring are less so.
                decay[0] = f32(1.0)
                decay[1] = f32(0.0)
                for _ in T.serial(length):
                    turned: T.float32 = q[0] * decay[0] - q[1] * decay[1]
                    decay[1] = q[0] * decay[1] + q[1] * decay[0]
                    decay[0] = turned
                for block in T.unroll(blocks):
                    end_re: T.float32 = States[block, k, lane, 0]
                    end_im: T.float32 = States[block, k, lane, 1]
                    States[block, k, lane, 0] = h[0]
                    States[block, k, lane, 1] = h[1]
                    end_re = decay[0] * h[0] + (end_re - decay[1] * h[1])
                    h[1] = decay[0] * h[1] + (decay[1] * h[0] + end_im)
                    h[0] = end_re

    @T.inline
    def outputs(
        X, Y, Ps, Qs, Gammas, States, H, layer, slot, c, exists, block, lane, length, steps, m
    ):
        """y of the block; the last block leaves its end in the slot's state."""
        h = T.alloc_local((2 * own,), "float32")
        q = T.alloc_local((2 * own,), "float32")
        gamma = T.alloc_local((2 * own,), "float32")
        p = T.alloc_local((own,), "float32")
        emitted = T.alloc_local((1,), "float32")
        load(Qs, 2, q, c, lane)
        load(Gammas, 2, gamma, c, lane)
        load(Ps, 1, p, c, lane)
        for k in T.unroll(own):
            for part in T.unroll(2):
                h[2 * k + part] = States[block, k, lane, part]

        @T.inline
        def advance(t, x):
            emitted[0] = f32(0.0)
            if t < steps:
                for k in T.unroll(own):
                    re, im = T.meta_var(2 * k), T.meta_var(2 * k + 1)
                    turned: T.float32 = q[re] * h[re] + (p[k] * x - q[im] * h[im])
                    h[im] = q[re] * h[im] + q[im] * h[re]
                    h[re] = turned
                    emitted[0] = emitted[0] + gamma[re] * h[re] - gamma[im] * h[im]
            reduce(emitted)
            if T.And(t < steps, T.And(exists, lane % spread == 0)):
                Y[block * length + t, c] = T.Cast(dtype, emitted[0] + x)

        follow(X, c, block * length, length, m, advance)
        if T.And(exists, block == (m - 1) // length):
            for k in T.unroll(own):
                if mode(k, lane) < modes:
                    for part in T.vectorized(2):
                        H[layer, slot, c, mode(k, lane), part] = h[2 * k + part]

    @T.prim_func(private=True)
    def cema(
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
        X = T.match_buffer(x, (m, dim), dtype)
        P = T.match_buffer(p, (dim, modes), "float32")
        Q = T.match_buffer(q, (dim, modes, 2), "float32")
        Gamma = T.match_buffer(gamma, (dim, modes, 2), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        H = T.match_buffer(h, (layers, num_slots, dim, modes, 2), "float32")
        Y = T.match_buffer(y, (m, dim), dtype)
        T.device_entry()
        cta = T.cta_id([T.ceildiv(dim, channels)])
        tx = T.thread_id([threads])
        Ps = T.decl_buffer((dim * modes,), "float32", data=P.data)
        Qs = T.decl_buffer((2 * dim * modes,), "float32", data=Q.data)
        Gammas = T.decl_buffer((2 * dim * modes,), "float32", data=Gamma.data)
        States = T.alloc_shared((blocks, own, lanes, 2), "float32")
        slot: T.int32 = Slots[0]
        block = T.meta_var(tx // lanes)
        lane = T.meta_var(tx % lanes)
        # Past the end, the last channel again.
        c = T.meta_var(T.min(cta * channels + lane // spread, dim - 1))
        exists = T.meta_var(cta * channels + lane // spread < dim)
        length: T.int32 = T.ceildiv(m, blocks)
        steps: T.int32 = T.max(0, T.min(length, m - block * length))
        ends(X, Ps, Qs, States, c, block, lane, length, steps, m)
        T.tvm_storage_sync("shared")
        carry(Qs, States, H, layer, slot, cta * channels, length, tx)
        T.tvm_storage_sync("shared")
        outputs(
            X, Y, Ps, Qs, Gammas, States, H, layer, slot, c, exists, block, lane, length, steps, m
        )

    return cema
