"""The complex EMA of m consecutive steps as matrix products, on portable tensor cores.

Time is cut into blocks of ``_BLOCK`` steps, the rows of the products; each warp has one channel and
takes 16 blocks at a time. With x [16, 32] one channel's input, a row for each block:

    E = x A        A[j, n] = p_n q_n^(31 - j): what each block adds to the state, [16, 2N] (re, im)
    S              the state before each block: a scan of E with q^32, across the lanes
    y = x K + S O  K[j, i] = Re sum_n gamma_n p_n q_n^(i - j) for j <= i, one more at i = j;
                   O[n, i] = gamma_n q_n^(i + 1): what of a state is seen i + 1 steps on

x is exact in its 16 bits. A and K are the sums of two matrices of x's type, S and O those of two
in bfloat16, whose range they may need, the product of the two lesser parts left out: 2^-17 in all.
Sums are float32. The matrices are made in the very registers that the instructions want them in
(fragments: PTX ISA, mma.m16n8k16): lane 4 g + t has columns g of right operands, and rows g and
g + 8, columns 2 t and 2 t + 1, of sums. The sums E thus become the left operand S where they are:
a lane's pair of columns is one mode, its two rows are taken to be consecutive blocks.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32
from .reduce import WARP, shuffle_up, shuffle_xor
from .tensor_core import multiply_add
from .vectors import Vectors

_BLOCK = 32  # steps
_ROWS = 16  # blocks of one product
_SEGMENT = _BLOCK * _ROWS  # steps
_CHANNELS = 16  # of a CTA, a warp for each
_THREADS = _CHANNELS * WARP
_MODES = 16  # at most
_TILES = _MODES // 4  # of 8 columns: of E, and of a block's steps
_DEPTHS = _BLOCK // 16  # of 16 rows: of A, K and, with 16 modes, O
# Words (two steps) of a block in shared memory and of a channel: with these, neither the 8 rows
# that a product reads at once nor the channels of a row of x that are written at once share banks.
_BLOCK_WORDS = _BLOCK // 2 + 2
_CHANNEL_WORDS = _ROWS * _BLOCK_WORDS + 2
# Places in a warp's table of coefficients: q^(2^i) for i = 0..8, then gamma, then p.
_POWERS, _GAMMA, _P = 9, 9, 10


def fits(dim: int, modes: int, dtype: str) -> bool:
    return dtype != "float32" and modes <= _MODES and dim % 8 == 0


@functools.cache
def products(dim: int, modes: int, layers: int, dtype: str):
    """x, y [m, D]; p [D, N], q and gamma [D, N, 2]; state h [layers, slots, D, N, 2]."""
    vectors = Vectors(8, dtype)
    wide = "bfloat16"  # of the products with states

    @T.inline
    def split(High, Low, word, type, first, second):
        """The pair as a word of High and one of Low, which together hold 16 or more bits of it."""
        a: T.float32 = first
        b: T.float32 = second
        High[2 * word] = T.Cast(type, a)
        High[2 * word + 1] = T.Cast(type, b)
        Low[2 * word] = T.Cast(type, a - T.Cast("float32", High[2 * word]))
        Low[2 * word + 1] = T.Cast(type, b - T.Cast("float32", High[2 * word + 1]))

    @T.inline
    def tabulate(P, Q, Gamma, Table, channel, warp, lane):
        """The channel's coefficients and powers, a lane for each mode; zeros where there is none.

        The powers are taken in double: squaring doubles the error.
        """
        re = T.alloc_local((1,), "float64")
        im = T.alloc_local((1,), "float64")
        square = T.alloc_local((1,), "float64")
        if lane < _MODES:
            re[0] = T.float64(0)
            im[0] = T.float64(0)
            for part in T.unroll(2):
                Table[warp, _GAMMA, lane, part] = f32(0.0)
                Table[warp, _P, lane, part] = f32(0.0)
            if channel < dim and lane < modes:
                re[0] = T.Cast("float64", Q[channel, lane, 0])
                im[0] = T.Cast("float64", Q[channel, lane, 1])
                for part in T.unroll(2):
                    Table[warp, _GAMMA, lane, part] = Gamma[channel, lane, part]
                Table[warp, _P, lane, 0] = P[channel, lane]
            for i in T.unroll(_POWERS):
                Table[warp, i, lane, 0] = T.Cast("float32", re[0])
                Table[warp, i, lane, 1] = T.Cast("float32", im[0])
                square[0] = re[0] * re[0] - im[0] * im[0]
                im[0] = (re[0] + re[0]) * im[0]
                re[0] = square[0]

    @T.inline
    def times(Value, Table, warp, power, mode):
        """Value = Value q_mode^(2^power), a complex number."""
        qr: T.float32 = Table[warp, power, mode, 0]
        qi: T.float32 = Table[warp, power, mode, 1]
        re: T.float32 = Value[0] * qr - Value[1] * qi
        Value[1] = Value[0] * qi + Value[1] * qr
        Value[0] = re

    @T.inline
    def absorbing(Table, High, Low, warp, g, t):
        """The fragments of A: column g of tile n is part g % 2 of mode 4 n + g / 2."""
        value = T.alloc_local((2,), "float32")
        later = T.alloc_local((2,), "float32")
        parts = T.alloc_local((2,), "float32")
        for n in T.unroll(_TILES):
            mode = T.meta_var(4 * n + g // 2)
            value[0] = Table[warp, _P, mode, 0]
            value[1] = f32(0.0)
            # q^(6 - 2 t)
            if t < 2:
                times(value, Table, warp, 2, mode)
            if t % 2 == 0:
                times(value, Table, warp, 1, mode)
            # From the block's last rows to its first: 8 more steps until the end each time.
            for i in T.unroll(2 * _DEPTHS):
                later[0] = value[0]
                later[1] = value[1]
                times(later, Table, warp, 0, mode)
                parts[0] = T.Select(g % 2 == 0, later[0], later[1])
                parts[1] = T.Select(g % 2 == 0, value[0], value[1])
                split(
                    High, Low, ((_DEPTHS - 1 - i // 2) * _TILES + n) * 2 + 1 - i % 2, dtype,
                    parts[0], parts[1],
                )  # fmt: skip
                times(value, Table, warp, 3, mode)

    @T.inline
    def emitting(Table, Taps, High, Low, warp, g, t):
        """The fragments of O: rows 2 t and 2 t + 1 of half tile n are mode 4 n + t.

        By the way Taps[8 + d] = Re sum_n gamma_n p_n q_n^d, one more at d = 0, zero for d < 0.
        """
        value = T.alloc_local((2,), "float32")
        taps = T.alloc_local((_TILES,), "float32")
        first = T.alloc_local((1,), "float32")
        first[0] = f32(0.0)
        for i in T.unroll(_TILES):
            taps[i] = f32(0.0)
        for n in T.unroll(_TILES):
            mode = T.meta_var(4 * n + t)
            value[0] = Table[warp, _GAMMA, mode, 0]
            value[1] = Table[warp, _GAMMA, mode, 1]
            first[0] = first[0] + Table[warp, _P, mode, 0] * value[0]
            # q^(g + 1)
            times(value, Table, warp, 0, mode)
            if g % 2 == 1:
                times(value, Table, warp, 0, mode)
            if g // 2 % 2 == 1:
                times(value, Table, warp, 1, mode)
            if g // 4 == 1:
                times(value, Table, warp, 2, mode)
            for i in T.unroll(_TILES):
                taps[i] = taps[i] + Table[warp, _P, mode, 0] * value[0]
                split(
                    High, Low, (n // 2 * _TILES + i) * 2 + n % 2, wide, value[0],
                    f32(0.0) - value[1],
                )  # fmt: skip
                times(value, Table, warp, 3, mode)
        for mask in T.unroll(2):
            first[0] = first[0] + shuffle_xor(first[0], mask + 1)
            for i in T.unroll(_TILES):
                taps[i] = taps[i] + shuffle_xor(taps[i], mask + 1)
        if t == 0:
            Taps[warp, g] = f32(0.0)
            for i in T.unroll(_TILES):
                Taps[warp, 8 + i * 8 + g + 1] = taps[i]
        if t == 1 and g == 0:
            Taps[warp, 8] = f32(1.0) + first[0]

    @T.inline
    def convolving(Taps, High, Low, warp, g, t):
        """The fragments of K: word i is its 8x8 tile that lies 3 - i tiles above the diagonal."""
        for i in T.unroll(_TILES):
            tap = T.meta_var(8 + 8 * (_TILES - 1 - i) + g - 2 * t)
            split(High, Low, i, dtype, Taps[warp, tap], Taps[warp, tap - 1])
        for j in T.unroll(2):
            High[2 * _TILES + j] = T.Cast(dtype, f32(0.0))
            Low[2 * _TILES + j] = T.Cast(dtype, f32(0.0))

    @T.inline
    def fetch(X, Rows, m, first, column, tx):
        """Two rows' 8 channels; zeros past the end."""
        for i in T.unroll(2):
            row = T.meta_var(first + tx // 2 * 2 + i)
            if row < m and column < dim:
                vectors.load_row(Rows, i * 8, X, row, column)
            else:
                for j in T.unroll(8):
                    Rows[i * 8 + j] = T.Cast(dtype, f32(0.0))

    @T.inline
    def place(Rows, Tile, buffer, tx):
        """The fetched rows, transposed: Tile[buffer, channel, step]."""
        pair = T.alloc_local((2,), dtype)
        step = T.meta_var(tx // WARP * 2 * _BLOCK_WORDS + tx // 2 % 16 * 2)
        for j in T.unroll(8):
            for i in T.unroll(2):
                pair[i] = Rows[i * 8 + j]
            for i in T.vectorized(2):
                Tile[buffer, tx % 2 * 8 + j, step + i] = pair[i]

    @T.inline
    def write(Tile, Y, Rows, buffer, m, first, column, tx):
        """The transposed rows of a segment, back to memory."""
        pair = T.alloc_local((2,), dtype)
        step = T.meta_var(tx // WARP * 2 * _BLOCK_WORDS + tx // 2 % 16 * 2)
        for j in T.unroll(8):
            for i in T.vectorized(2):
                pair[i] = Tile[buffer, tx % 2 * 8 + j, step + i]
            for i in T.unroll(2):
                Rows[i * 8 + j] = pair[i]
        for i in T.unroll(2):
            row = T.meta_var(first + tx // 2 * 2 + i)
            if row < m and column < dim:
                vectors.store_row(Y, row, column, Rows, i * 8)

    @T.inline
    def scan(E, High, Low, Table, State, buffer, warp, lane, end):
        """From what the blocks add, E, to the states before them, as left fragments High and Low.

        State[buffer] is that before the first of the 16 blocks; the other one becomes that before
        block ``end``.
        """
        g, t = T.meta_var(lane // 4), T.meta_var(lane % 4)
        re = T.alloc_local((1,), "float32")
        im = T.alloc_local((1,), "float32")
        for n in T.unroll(_TILES):
            mode = T.meta_var(4 * n + t)
            # What a lane's two blocks add goes to the next lane, then on to all that follow.
            qr: T.float32 = Table[warp, 5, mode, 0]
            qi: T.float32 = Table[warp, 5, mode, 1]
            re[0] = shuffle_up(qr * E[4 * n] - qi * E[4 * n + 1] + E[4 * n + 2], 4)
            im[0] = shuffle_up(qr * E[4 * n + 1] + qi * E[4 * n] + E[4 * n + 3], 4)
            if g == 0:
                re[0] = State[buffer, warp, mode, 0]
                im[0] = State[buffer, warp, mode, 1]
            for i in T.unroll(3):
                wr: T.float32 = Table[warp, 6 + i, mode, 0]
                wi: T.float32 = Table[warp, 6 + i, mode, 1]
                before_re: T.float32 = shuffle_up(re[0], 4 << i)
                before_im: T.float32 = shuffle_up(im[0], 4 << i)
                if g >= 1 << i:
                    re[0] = re[0] + wr * before_re - wi * before_im
                    im[0] = im[0] + wr * before_im + wi * before_re
            split(High, Low, 2 * n, wide, re[0], im[0])
            if end == 2 * g:
                State[1 - buffer, warp, mode, 0] = re[0]
                State[1 - buffer, warp, mode, 1] = im[0]
            next_re: T.float32 = qr * re[0] - qi * im[0] + E[4 * n]
            next_im: T.float32 = qr * im[0] + qi * re[0] + E[4 * n + 1]
            split(High, Low, 2 * n + 1, wide, next_re, next_im)
            if end == 2 * g + 1:
                State[1 - buffer, warp, mode, 0] = next_re
                State[1 - buffer, warp, mode, 1] = next_im
            if end >= _ROWS and g == 7:
                State[1 - buffer, warp, mode, 0] = qr * next_re - qi * next_im + E[4 * n + 2]
                State[1 - buffer, warp, mode, 1] = qr * next_im + qi * next_re + E[4 * n + 3]

    @T.inline
    def finish(Tile, State, Table, Last, buffer, warp, lane, block, steps):
        """Last = the new State after the ``steps`` of an incomplete block; a lane for each mode."""
        qr: T.float32 = Table[warp, 0, lane, 0]
        qi: T.float32 = Table[warp, 0, lane, 1]
        p: T.float32 = Table[warp, _P, lane, 0]
        Last[0] = State[1 - buffer, warp, lane, 0]
        Last[1] = State[1 - buffer, warp, lane, 1]
        for step in T.serial(steps):
            value = T.meta_var(
                T.Cast("float32", Tile[buffer, warp, block * 2 * _BLOCK_WORDS + step])
            )
            turned: T.float32 = qr * Last[0] + (p * value - qi * Last[1])
            Last[1] = qr * Last[1] + qi * Last[0]
            Last[0] = turned

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
        warp, lane = T.meta_var(tx // WARP), T.meta_var(tx % WARP)
        g, t = T.meta_var(lane // 4), T.meta_var(lane % 4)
        channel = T.meta_var(cta * _CHANNELS + warp)
        column = T.meta_var(cta * _CHANNELS + tx % 2 * 8)
        pool = T.SMEMPool()
        Tile = pool.alloc((2, _CHANNELS, 2 * _CHANNEL_WORDS), dtype, align=16)
        Table = pool.alloc((_CHANNELS, _P + 1, _MODES, 2), "float32", align=16)
        Taps = pool.alloc((_CHANNELS, 48), "float32", align=16)
        State = pool.alloc((2, _CHANNELS, _MODES, 2), "float32", align=16)
        pool.commit()
        Words = Tile.view("uint32")
        rows = T.alloc_local((16,), dtype)
        done = T.alloc_local((16,), dtype)
        a_high = T.alloc_local((4 * _DEPTHS * _TILES,), dtype)
        a_low = T.alloc_local((4 * _DEPTHS * _TILES,), dtype)
        o_high = T.alloc_local((4 * _DEPTHS * _TILES,), wide)
        o_low = T.alloc_local((4 * _DEPTHS * _TILES,), wide)
        k_high = T.alloc_local((2 * _TILES + 2,), dtype)
        k_low = T.alloc_local((2 * _TILES + 2,), dtype)
        s_high = T.alloc_local((4 * _TILES,), wide)
        s_low = T.alloc_local((4 * _TILES,), wide)
        left = T.alloc_local((4 * _DEPTHS,), "uint32")
        added = T.alloc_local((4 * _TILES,), "float32")
        emitted = T.alloc_local((4 * _TILES,), "float32")
        outputs = T.alloc_local((4 * _TILES,), dtype)
        last = T.alloc_local((2,), "float32")
        slot: T.int32 = Slots[0]
        fetch(X, rows, m, 0, column, tx)
        if lane < _MODES:
            for part in T.unroll(2):
                State[0, warp, lane, part] = f32(0.0)
            if channel < dim and lane < modes:
                for part in T.unroll(2):
                    State[0, warp, lane, part] = H[layer, slot, channel, lane, part]
        tabulate(P, Q, Gamma, Table, channel, warp, lane)
        T.cuda.warp_sync()
        absorbing(Table, a_high, a_low, warp, g, t)
        emitting(Table, Taps, o_high, o_low, warp, g, t)
        T.cuda.warp_sync()
        convolving(Taps, k_high, k_low, warp, g, t)
        a_words, a_rest = T.meta_var(a_high.view("uint32")), T.meta_var(a_low.view("uint32"))
        o_words, o_rest = T.meta_var(o_high.view("uint32")), T.meta_var(o_low.view("uint32"))
        k_words, k_rest = T.meta_var(k_high.view("uint32")), T.meta_var(k_low.view("uint32"))
        s_words, s_rest = T.meta_var(s_high.view("uint32")), T.meta_var(s_low.view("uint32"))
        output_words = T.meta_var(outputs.view("uint32"))
        place(rows, Tile, 0, tx)
        T.tvm_storage_sync("shared")
        for segment in T.serial(T.ceildiv(m, _SEGMENT)):
            buffer = T.meta_var(segment % 2)
            end = T.meta_var(m // _BLOCK - segment * _ROWS)
            fetch(X, rows, m, (segment + 1) * _SEGMENT, column, tx)
            for d in T.unroll(_DEPTHS):
                for i in T.unroll(4):
                    word = T.meta_var((2 * g + i % 2) * _BLOCK_WORDS + d * 8 + i // 2 * 4 + t)
                    left[4 * d + i] = Words[buffer, warp, word]
            for i in T.unroll(4 * _TILES):
                added[i] = f32(0.0)
                emitted[i] = f32(0.0)
            for d in T.unroll(_DEPTHS):
                for n in T.unroll(_TILES):
                    sums = T.meta_var([4 * n + i for i in range(4)])
                    multiply_add(dtype, added, sums, left, 4 * d, a_words, (d * _TILES + n) * 2)
                    multiply_add(dtype, added, sums, left, 4 * d, a_rest, (d * _TILES + n) * 2)
            for d in T.unroll(_DEPTHS):
                for n in T.unroll(_TILES):
                    if n >= 2 * d:
                        sums = T.meta_var([4 * n + i for i in range(4)])
                        tile = T.meta_var(_TILES - 1 - n + 2 * d)
                        multiply_add(dtype, emitted, sums, left, 4 * d, k_words, tile)
                        multiply_add(dtype, emitted, sums, left, 4 * d, k_rest, tile)
            scan(added, s_high, s_low, Table, State, buffer, warp, lane, end)
            for d in T.unroll(_DEPTHS):
                for n in T.unroll(_TILES):
                    sums = T.meta_var([4 * n + i for i in range(4)])
                    word = T.meta_var((d * _TILES + n) * 2)
                    multiply_add(wide, emitted, sums, s_words, 4 * d, o_words, word)
                    multiply_add(wide, emitted, sums, s_rest, 4 * d, o_words, word)
                    multiply_add(wide, emitted, sums, s_words, 4 * d, o_rest, word)
            T.cuda.warp_sync()
            if (segment + 1) * _SEGMENT >= m and lane < modes and channel < dim:
                finish(Tile, State, Table, last, buffer, warp, lane, end, m % _BLOCK)
                for part in T.unroll(2):
                    H[layer, slot, channel, lane, part] = last[part]
            T.cuda.warp_sync()
            for n in T.unroll(_TILES):
                for i in T.unroll(4):
                    outputs[4 * n + i] = T.Cast(dtype, emitted[4 * n + i])
                for i in T.unroll(2):
                    word = T.meta_var((2 * g + i) * _BLOCK_WORDS + n * 4 + t)
                    Words[buffer, warp, word] = output_words[2 * n + i]
            T.tvm_storage_sync("shared")
            write(Tile, Y, done, buffer, m, segment * _SEGMENT, column, tx)
            place(rows, Tile, 1 - buffer, tx)
            T.tvm_storage_sync("shared")

    return cema
