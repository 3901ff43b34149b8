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
from .vectors import Vectors, vector_width

_CHANNELS = 16  # of a CTA: 32 bytes of a row of half precision
_THREADS = 512
_THREAD_MODES = 8  # at most, so that state and coefficients stay in registers
_STEPS = 2048  # that a CTA holds in shared memory at a time


@functools.cache
def recurrence(dim: int, modes: int, layers: int, dtype: str):
    """x, y [m, D]; p [D, N], q and gamma [D, N, 2]; state h [layers, slots, D, N, 2]."""
    # The modes of a channel are spread over adjacent lanes: lane s has modes s, s + spread, ...
    spread = 1 << (-(-modes // _THREAD_MODES) - 1).bit_length()
    own = -(-modes // spread)  # modes of a thread
    lanes = _CHANNELS * spread  # threads of a block
    blocks = _THREADS // lanes
    width = vector_width(dtype, _CHANNELS, dim)
    pieces = _CHANNELS // width
    vectors = Vectors(width, dtype)
    reduce = warp_reduce(total, spread)

    @T.inline
    def power(Base, Result, exponent):
        """Result = Base^exponent for a complex number in double, exponent <= _STEPS / blocks."""
        re = T.alloc_local((1,), "float64")
        Result[0] = T.float64(1)
        Result[1] = T.float64(0)
        for i in T.serial((_STEPS // blocks).bit_length()):
            if (exponent >> i) % 2 == 1:
                re[0] = Result[0] * Base[0] - Result[1] * Base[1]
                Result[1] = Result[0] * Base[1] + Result[1] * Base[0]
                Result[0] = re[0]
            re[0] = Base[0] * Base[0] - Base[1] * Base[1]
            Base[1] = T.float64(2) * Base[0] * Base[1]
            Base[0] = re[0]

    @T.inline
    def stage(P, Q, Gamma, Ps, Qs, Gammas, c0, tx):
        """The coefficients [own, lanes] of the CTA's channels; zero where there is no mode."""
        for i in T.serial(T.ceildiv(own * lanes, _THREADS)):
            item = T.meta_var(i * _THREADS + tx)
            k = T.meta_var(item // lanes)
            lane = T.meta_var(item % lanes)
            if item < own * lanes:
                c = T.meta_var(c0 + lane // spread)
                n = T.meta_var(k * spread + lane % spread)
                if c < dim and n < modes:
                    Ps[k, lane] = P[c, n]
                    for part in T.vectorized(2):
                        Qs[k, lane, part] = Q[c, n, part]
                    for part in T.vectorized(2):
                        Gammas[k, lane, part] = Gamma[c, n, part]
                else:
                    Ps[k, lane] = f32(0.0)
                    for part in T.vectorized(2):
                        Qs[k, lane, part] = f32(0.0)
                    for part in T.vectorized(2):
                        Gammas[k, lane, part] = f32(0.0)

    @T.inline
    def ends(Tile, Ps, Qs, States, block, lane, length, steps):
        """States[block] = the state at the end of the block, from zero at its start."""
        hr = T.alloc_local((own,), "float32")
        hi = T.alloc_local((own,), "float32")
        qr = T.alloc_local((own,), "float32")
        qi = T.alloc_local((own,), "float32")
        for k in T.unroll(own):
            qr[k] = Qs[k, lane, 0]
            qi[k] = Qs[k, lane, 1]
            hr[k] = f32(0.0)
            hi[k] = f32(0.0)
        for t in T.serial(steps):
            value: T.float32 = T.Cast("float32", Tile[block * length + t, lane // spread])
            for k in T.unroll(own):
                turned: T.float32 = qr[k] * hr[k] + (value - qi[k] * hi[k])
                hi[k] = qr[k] * hi[k] + qi[k] * hr[k]
                hr[k] = turned
        for k in T.unroll(own):
            States[block, k, lane, 0] = Ps[k, lane] * hr[k]
            States[block, k, lane, 1] = Ps[k, lane] * hi[k]

    @T.inline
    def carry(Qs, States, H, layer, slot, c0, length, tx):
        """States[block] becomes the state before the block."""
        base = T.alloc_local((2,), "float64")
        decay = T.alloc_local((2,), "float64")
        for i in T.serial(T.ceildiv(own * lanes, _THREADS)):
            item = T.meta_var(i * _THREADS + tx)
            k = T.meta_var(item // lanes)
            lane = T.meta_var(item % lanes)
            if item < own * lanes:
                c = T.meta_var(c0 + lane // spread)
                n = T.meta_var(k * spread + lane % spread)
                base[0] = T.Cast("float64", Qs[k, lane, 0])
                base[1] = T.Cast("float64", Qs[k, lane, 1])
                power(base, decay, length)
                dr: T.float32 = T.Cast("float32", decay[0])
                di: T.float32 = T.Cast("float32", decay[1])
                hr: T.float32 = f32(0.0)
                hi: T.float32 = f32(0.0)
                if c < dim and n < modes:
                    hr = H[layer, slot, c, n, 0]
                    hi = H[layer, slot, c, n, 1]
                for block in T.unroll(blocks):
                    er: T.float32 = States[block, k, lane, 0]
                    ei: T.float32 = States[block, k, lane, 1]
                    States[block, k, lane, 0] = hr
                    States[block, k, lane, 1] = hi
                    er = dr * hr + (er - di * hi)
                    hi = dr * hi + (di * hr + ei)
                    hr = er

    @T.inline
    def outputs(Tile, Ps, Qs, Gammas, States, H, layer, slot, c0, block, lane, length, steps, last):
        """Tile becomes y; the last block leaves its end in the slot's state."""
        hr = T.alloc_local((own,), "float32")
        hi = T.alloc_local((own,), "float32")
        qr = T.alloc_local((own,), "float32")
        qi = T.alloc_local((own,), "float32")
        gr = T.alloc_local((own,), "float32")
        gi = T.alloc_local((own,), "float32")
        p = T.alloc_local((own,), "float32")
        emitted = T.alloc_local((1,), "float32")
        for k in T.unroll(own):
            p[k] = Ps[k, lane]
            qr[k] = Qs[k, lane, 0]
            qi[k] = Qs[k, lane, 1]
            gr[k] = Gammas[k, lane, 0]
            gi[k] = Gammas[k, lane, 1]
            hr[k] = States[block, k, lane, 0]
            hi[k] = States[block, k, lane, 1]
        for t in T.serial(steps):
            value: T.float32 = T.Cast("float32", Tile[block * length + t, lane // spread])
            emitted[0] = f32(0.0)
            for k in T.unroll(own):
                turned: T.float32 = qr[k] * hr[k] + (p[k] * value - qi[k] * hi[k])
                hi[k] = qr[k] * hi[k] + qi[k] * hr[k]
                hr[k] = turned
                emitted[0] = emitted[0] + gr[k] * hr[k] - gi[k] * hi[k]
            reduce(emitted)
            T.cuda.warp_sync()  # other lanes have read the value that y replaces
            if lane % spread == 0:
                Tile[block * length + t, lane // spread] = T.Cast(dtype, emitted[0] + value)
        if block == last and c0 + lane // spread < dim:
            for k in T.unroll(own):
                if k * spread + lane % spread < modes:
                    H[layer, slot, c0 + lane // spread, k * spread + lane % spread, 0] = hr[k]
                    H[layer, slot, c0 + lane // spread, k * spread + lane % spread, 1] = hi[k]

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
        cta = T.cta_id([T.ceildiv(dim, _CHANNELS)])
        tx = T.thread_id([_THREADS])
        pool = T.SMEMPool()
        Tile = pool.alloc((_STEPS, _CHANNELS), dtype, align=16)
        States = pool.alloc((blocks, own, lanes, 2), "float32", align=16)
        Qs = pool.alloc((own, lanes, 2), "float32", align=16)
        Gammas = pool.alloc((own, lanes, 2), "float32", align=16)
        Ps = pool.alloc((own, lanes), "float32", align=16)
        pool.commit()
        slot: T.int32 = Slots[0]
        c0 = T.meta_var(cta * _CHANNELS)
        block = T.meta_var(tx // lanes)
        lane = T.meta_var(tx % lanes)
        values = T.alloc_local((width,), dtype)
        stage(P, Q, Gamma, Ps, Qs, Gammas, c0, tx)
        for segment in T.serial(T.ceildiv(m, _STEPS)):
            rows: T.int32 = T.min(_STEPS, m - segment * _STEPS)
            length: T.int32 = T.ceildiv(rows, blocks)
            steps: T.int32 = T.max(0, T.min(length, rows - block * length))
            for i in T.serial(T.ceildiv(rows * pieces, _THREADS)):
                item = T.meta_var(i * _THREADS + tx)
                column = T.meta_var(c0 + item % pieces * width)
                if item < rows * pieces and column < dim:
                    vectors.load_row(values, 0, X, segment * _STEPS + item // pieces, column)
                    vectors.store_row(Tile, item // pieces, item % pieces * width, values, 0)
            T.tvm_storage_sync("shared")
            ends(Tile, Ps, Qs, States, block, lane, length, steps)
            T.tvm_storage_sync("shared")
            carry(Qs, States, H, layer, slot, c0, length, tx)
            T.tvm_storage_sync("shared")
            outputs(
                Tile, Ps, Qs, Gammas, States, H, layer, slot, c0, block, lane, length, steps,
                (rows - 1) // length,
            )  # fmt: skip
            T.tvm_storage_sync("shared")
            for i in T.serial(T.ceildiv(rows * pieces, _THREADS)):
                item = T.meta_var(i * _THREADS + tx)
                column = T.meta_var(c0 + item % pieces * width)
                if item < rows * pieces and column < dim:
                    vectors.load_row(values, 0, Tile, item // pieces, item % pieces * width)
                    vectors.store_row(Y, segment * _STEPS + item // pieces, column, values, 0)

    return cema
