"""Warpgroup matrix products over tiles in shared memory (PTX ISA, wgmma).

A tile is stored in panels of 64 elements (128 bytes) a row with the 128-byte swizzle, as a TMA box
of 64 columns leaves it; 8 rows of a panel are 1024 bytes. A warpgroup keeps 64 rows x ``columns``
of its product in registers, float32 ``sums`` [columns / 2]: thread t has, of each 8 columns j,
columns 8j + 2 (t mod 4) and the next, in row 16 (t / 32) + t mod 32 / 4 (sums 4j and 4j+1) and in
the row 8 below it (sums 4j+2 and 4j+3).
"""

from __future__ import annotations

from tvm.script import tirx as T

from ..reduce import shuffle_xor

# Columns of a panel, and the depth of one wgmma instruction, in 16-bit elements.
PANEL = 64
DEPTH = 16
THREADS = 128
ROWS = 64

_ELEMENT = {"float16": "f16", "bfloat16": "bf16"}
# Descriptor fields (in units of 16 bytes): address at bit 0, leading offset at 16, stride at 32,
# swizzle mode (1: 128 bytes) at 62.
_SWIZZLE_128 = 1 << 62
_EIGHT_ROWS = (1024 >> 4) << 32


def rows_descriptor(pointer):
    """Descriptor of a panel whose rows are the product's rows (or columns), 64 deep."""
    return _descriptor(pointer, _SWIZZLE_128 | _EIGHT_ROWS | 1 << 16)


def columns_descriptor(pointer, panel_bytes: int):
    """Descriptor of panels of 64 columns each, ``panel_bytes`` apart, whose rows are the depth."""
    return _descriptor(pointer, _SWIZZLE_128 | _EIGHT_ROWS | (panel_bytes >> 4) << 16)


def _descriptor(pointer, fields: int):
    address = T.cuda.cvta_generic_to_shared(pointer)
    return T.uint64(fields) | T.cast(T.shift_right(address, T.uint32(4)), "uint64")


def multiply(sums, a, b, keep, columns: int, dtype: str, transposed: bool = False) -> None:
    """Starts sums (+)= a b over 64 of depth, as one group; ``keep`` is false to start from zero.

    ``a`` is a rows_descriptor; ``b`` one too, or a columns_descriptor when ``transposed``.
    """
    element = _ELEMENT[dtype]
    instruction = f"wgmma.mma_async.sync.aligned.m64n{columns}k{DEPTH}.f32.{element}.{element}"
    a_step = DEPTH * 2 >> 4
    b_step = DEPTH * 128 >> 4 if transposed else a_step
    registers = [sums[i] for i in range(columns // 2)]
    T.evaluate(T.ptx.wgmma.fence.sync.aligned())
    for step in range(PANEL // DEPTH):
        descriptors = a + T.uint64(step * a_step), b + T.uint64(step * b_step)
        accumulate = T.ptx.pred(1 if step else keep)
        T.evaluate(
            T.ptx[instruction](*registers, *descriptors, accumulate, 1, 1, 0, int(transposed))
        )
    T.evaluate(T.ptx.wgmma.commit_group.sync.aligned())


def finished(sums, columns: int) -> None:
    """Waits for all products; the sums pass through, so no use of them moves before the wait."""
    name = f"wgmma_finished_{columns}"
    count = columns // 2
    parameters = ", ".join(f"float &s{i}" for i in range(count))
    operands = ", ".join(f'"+f"(s{i})' for i in range(count))
    source = (
        f"__forceinline__ __device__ void {name}({parameters}) {{\n"
        f'  asm volatile("wgmma.wait_group.sync.aligned 0;" : {operands} : : "memory");\n}}\n'
    )
    registers = [sums[i] for i in range(count)]
    T.evaluate(T.cuda.func_call(name, *registers, source_code=source))


@T.inline
def _exchange(words, i, j, upper, mask):
    """Swaps words[j] of the lower lane with words[i] of the upper, lanes ``mask`` apart."""
    sent = T.alloc_local((1,), "uint32")
    sent[0] = shuffle_xor(T.Select(upper, words[i], words[j]), mask)
    if upper:
        words[i] = sent[0]
    else:
        words[j] = sent[0]


@T.inline
def transpose_quad(words, lane):
    """Word j of the i-th of four neighbouring lanes becomes word i of the j-th."""
    for i in range(2):
        _exchange(words, 2 * i, 2 * i + 1, lane % 2 == 1, 1)
    for i in range(2):
        _exchange(words, i, i + 2, lane % 4 >= 2, 2)


def half_of_word(word, k: int, dtype: str):
    """The float32 value of the lower (0) or upper (1) element of a word."""
    bits = T.cast(T.shift_right(word, T.uint32(16 * k)), "uint16")
    return T.cast(T.reinterpret(dtype, bits), "float32")


def load_words(columns: int):
    """An inline: of 32 columns of a row of a 16-bit matrix, this thread's pairs in each 8."""

    @T.inline
    def read(words, matrix, row, column, tx):
        pairs = matrix.view("uint32")
        for i in T.vectorized(4):
            words[i] = pairs[row, column // 2 + 4 * (tx % 4) + i]
        transpose_quad(words, tx)

    return read


def store(columns: int, dtype: str, width: int):
    """An inline: the warpgroup's sums become elements (row .., column ..) of a matrix.

    The matrix has ``rows`` rows and ``width`` columns; width is a multiple of 8, ``columns`` of 16.
    """
    return (_store_float32 if dtype == "float32" else _store_16bit)(columns, dtype, width)


def _store_float32(columns: int, dtype: str, width: int):
    @T.inline
    def write(out, sums, tx, row, column, rows):
        first = row + tx // 32 * 16 + tx % 32 // 4
        for below in T.unroll(2):
            for j in T.unroll(columns // 8):
                at = column + 8 * j + 2 * (tx % 4)
                if T.And(first + 8 * below < rows, at < width):
                    for i in T.vectorized(2):
                        out[first + 8 * below, at + i] = sums[4 * j + 2 * below + i]

    return write


def _store_16bit(columns: int, dtype: str, width: int):
    convert = f"cvt.rn.{_ELEMENT[dtype]}x2.f32"

    @T.inline
    def write(out, sums, tx, row, column, rows):
        # Four lanes share 32 columns of a row; transposed, each has 8 side by side (16 bytes). Of
        # the last 16 columns, where they are only 16, the third and fourth lane have none.
        pairs = out.view("uint32")
        first = row + tx // 32 * 16 + tx % 32 // 4
        words = T.alloc_local((4,), "uint32")
        for j in T.unroll((columns + 16) // 32):
            at = column + 32 * j + 8 * (tx % 4)
            for below in T.unroll(2):
                for i in T.unroll(4):
                    first_sum = T.meta_var(T.min(4 * j + i, columns // 8 - 1) * 4 + 2 * below)
                    T.ptx[convert](words[i], sums[first_sum + 1], sums[first_sum])
                transpose_quad(words, tx)
                if T.And(first + 8 * below < rows, at < T.min(column + columns, width)):
                    for i in T.vectorized(4):
                        pairs[first + 8 * below, at // 2 + i] = words[i]

    return write
