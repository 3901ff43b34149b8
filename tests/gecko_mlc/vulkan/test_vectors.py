"""Loads and stores of one and of several elements, in every memory, and the shared arenas."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from small_kernels import compiled
from tvm.script import tirx as T

DTYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int32": np.int32,
    "int64": np.int64,
}
THREADS, GROUPS = 32, 2


def numbers(dtype: str, count: int) -> np.ndarray:
    return (np.arange(count) % 251 - 100).astype(DTYPES[dtype])


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_pass_through_registers_and_shared_memory(dtype, lanes):
    count = THREADS * GROUPS * lanes

    @T.prim_func(private=True)
    def turn(A: T.Buffer((count,), dtype), B: T.Buffer((count,), dtype)):
        T.device_entry()
        group = T.cta_id([GROUPS])
        tx = T.thread_id([THREADS])
        Shared = T.alloc_shared((THREADS * lanes,), dtype)
        row = T.alloc_local((lanes,), dtype)
        for j in T.vectorized(lanes):
            row[j] = A[(group * THREADS + tx) * lanes + j]
        for j in T.vectorized(lanes):
            Shared[tx * lanes + j] = row[j]
        T.tvm_storage_sync("shared")
        for j in T.vectorized(lanes):
            row[j] = Shared[(THREADS - 1 - tx) * lanes + j]
        for j in T.vectorized(lanes):
            B[(group * THREADS + tx) * lanes + j] = row[j]

    a, b = numbers(dtype, count), np.zeros(count, DTYPES[dtype])
    compiled(turn)(GROUPS, A=a, B=b)
    expected = a.reshape(GROUPS, THREADS, lanes)[:, ::-1].reshape(-1)
    np.testing.assert_array_equal(b, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_single_elements_and_vectors_of_one_shared_buffer(dtype):
    """Written one at a time, transposed; read as vectors, from an index without a factor."""
    rows, lanes = 16, 8

    @T.prim_func(private=True)
    def transpose(A: T.Buffer((256,), dtype), B: T.Buffer((256,), dtype)):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([32])
        Shared = T.alloc_shared((256,), dtype)
        start = T.alloc_local((1,), "int32")
        for i in T.unroll(lanes):
            Shared[(tx + i * 32) % rows * rows + (tx + i * 32) // rows] = A[tx + i * 32]
        T.tvm_storage_sync("shared")
        start[0] = tx * lanes
        for j in T.vectorized(lanes):
            B[start[0] + j] = Shared[start[0] + j]

    a, b = numbers(dtype, 256), np.zeros(256, DTYPES[dtype])
    compiled(transpose)(1, A=a, B=b)
    np.testing.assert_array_equal(b, a.reshape(rows, rows).T.reshape(-1))


def test_shared_memory_holds_one_type_after_another():
    @T.prim_func(private=True)
    def reuse(
        A: T.Buffer((64,), "bfloat16"), B: T.Buffer((32,), "float32"), C: T.Buffer((32,), "int32")
    ):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([32])
        Arena = T.alloc_buffer((256,), "uint8", scope="shared.dyn")
        Halves = T.decl_buffer((64,), "bfloat16", data=Arena.data, scope="shared.dyn")
        Floats = T.decl_buffer((32,), "float32", data=Arena.data, scope="shared.dyn")
        Words = T.decl_buffer((32,), "int32", data=Arena.data, elem_offset=32, scope="shared.dyn")
        pair = T.alloc_local((2,), "bfloat16")
        for j in T.vectorized(2):
            Halves[tx * 2 + j] = A[tx * 2 + j]
        Words[tx] = tx * 3
        T.tvm_storage_sync("shared")
        for j in T.vectorized(2):
            pair[j] = Halves[(31 - tx) * 2 + j]
        T.tvm_storage_sync("shared")
        Floats[tx] = T.cast(pair[0], "float32") - T.cast(pair[1], "float32")
        T.tvm_storage_sync("shared")
        B[tx] = Floats[(tx + 1) % 32]
        C[tx] = Words[31 - tx]

    a = numbers("bfloat16", 64)
    b, c = np.zeros(32, np.float32), np.zeros(32, np.int32)
    compiled(reuse)(1, A=a, B=b, C=c)
    pairs = a.astype(np.float32).reshape(32, 2)[::-1]
    np.testing.assert_array_equal(b, np.roll(pairs[:, 0] - pairs[:, 1], -1))
    np.testing.assert_array_equal(c, np.arange(32)[::-1] * 3)


def test_words_of_halves():
    """Pairs of 16-bit elements as words, and words as other types."""

    @T.prim_func(private=True)
    def words(
        A: T.Buffer((256,), "float16"),
        B: T.Buffer((128,), "uint32"),
        C: T.Buffer((256,), "float16"),
    ):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([32])
        B[T.Ramp(tx * 4, 1, 4)] = T.reinterpret("uint32x4", A[T.Ramp(tx * 8, 1, 8)])
        C[T.Ramp(tx * 8, 1, 8)] = T.reinterpret("float16x8", B[T.Ramp(tx * 4, 1, 4)])

    a = numbers("float16", 256)
    b, c = np.zeros(128, np.uint32), np.zeros(256, np.float16)
    compiled(words)(1, A=a, B=b, C=c)
    np.testing.assert_array_equal(b, a.view(np.uint32))
    np.testing.assert_array_equal(c, a)
