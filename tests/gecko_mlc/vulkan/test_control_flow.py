"""Loops, branches and what registers hold after them; many arguments."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import numpy as np
import pytest
from small_kernels import compiled
from tvm.script import tirx as T

THREADS = 32


def test_registers_across_loops_and_branches():
    @T.prim_func(private=True)
    def collatz(A: T.Buffer((THREADS,), "int32"), B: T.Buffer((3, THREADS), "int32"), n: T.int32):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        x = T.alloc_local((2,), "int32")
        odd = T.alloc_local((1,), "int32")
        x[0] = A[tx]
        x[1] = 0
        odd[0] = 7
        for i in range(n):
            if x[0] % 2 == 1:
                x[0] = x[0] * 3 + 1
                odd[0] = i
                for j in range(x[0] % 4):
                    x[1] = x[1] + j
            else:
                x[0] = x[0] // 2
                if x[0] == 1:
                    x[1] = x[1] * 2
            B[2, tx] = x[1]
        B[0, tx] = x[0]
        B[1, tx] = odd[0]

    a = np.arange(1, THREADS + 1, dtype=np.int32)
    for steps in (0, 1, 17):
        b = np.zeros((3, THREADS), np.int32)
        compiled(collatz)(1, A=a, B=b, n=steps)
        expected = np.zeros((3, THREADS), np.int32)
        for thread, start in enumerate(a):
            x, total, odd = int(start), 0, 7
            for i in range(steps):
                if x % 2:
                    x, odd = x * 3 + 1, i
                    total += sum(range(x % 4))
                else:
                    x //= 2
                    total = total * 2 if x == 1 else total
                expected[2, thread] = total
            expected[:2, thread] = x, odd
        np.testing.assert_array_equal(b, expected)


@pytest.mark.parametrize("extent", [4, 40])
def test_local_arrays_with_computed_indices(extent):
    """A short loop is written out, a long one keeps the array in memory."""

    @T.prim_func(private=True)
    def prefix(A: T.Buffer((THREADS, extent), "float32"), B: T.Buffer((THREADS,), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        row = T.alloc_local((extent,), "float32")
        for i in range(extent):
            row[i] = A[tx, i]
        for i in range(extent - 1):
            row[i + 1] = row[i + 1] + row[i] * T.float32(0.5)
        B[tx] = row[tx % extent]

    a = np.random.default_rng(2).standard_normal((THREADS, extent)).astype(np.float32)
    b = np.zeros(THREADS, np.float32)
    compiled(prefix)(1, A=a, B=b)
    rows = a.copy()
    for i in range(extent - 1):
        rows[:, i + 1] += rows[:, i] * np.float32(0.5)
    expected = rows[np.arange(THREADS), np.arange(THREADS) % extent]
    np.testing.assert_allclose(b, expected, rtol=1e-6)


def test_loops_with_bounds_of_64_bits():
    @T.prim_func(private=True)
    def count(B: T.Buffer((THREADS,), "int64"), first: T.int64, many: T.int64):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        total = T.alloc_local((1,), "int64")
        total[0] = T.int64(0)
        for i in T.serial(many):
            total[0] = total[0] + (first + i) * T.int64(3)
        B[tx] = total[0] + T.cast(tx, "int64")

    b = np.zeros(THREADS, np.int64)
    first = (1 << 40) + 5
    compiled(count)(1, B=b, first=first, many=7)
    np.testing.assert_array_equal(b, sum((first + i) * 3 for i in range(7)) + np.arange(THREADS))


@pytest.mark.parametrize("room, in_memory", [(128, False), (32, True)])
def test_arguments_of_all_types(room, in_memory):
    @T.prim_func(private=True)
    def mix(
        A: T.Buffer((THREADS,), "float32"),
        B: T.Buffer((THREADS,), "float32"),
        small: T.int32,
        wide: T.int64,
        scale: T.float32,
        last: T.int32,
    ):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        total = T.alloc_local((1,), "int64")
        total[0] = T.cast(small, "int64") + wide * T.int64(2) + T.cast(last, "int64")
        B[tx] = A[tx] * scale + T.cast(total[0], "float32")

    kernel = compiled(mix, max_push_constants_size=room)
    assert kernel.kernel.in_memory == in_memory
    a, b = np.arange(THREADS, dtype=np.float32), np.zeros(THREADS, np.float32)
    kernel(1, A=a, B=b, small=-3, wide=1 << 20, scale=0.25, last=11)
    np.testing.assert_array_equal(b, a * np.float32(0.25) + np.float32((1 << 21) + 8))


def test_more_arguments_than_push_constants_hold():
    @T.prim_func(private=True)
    def gather(
        A: T.Buffer((THREADS,), "float32"),
        B: T.Buffer((THREADS,), "float32"),
        C: T.Buffer((THREADS,), "float32"),
        D: T.Buffer((THREADS,), "float32"),
        E: T.Buffer((THREADS,), "float32"),
        F: T.Buffer((THREADS,), "float32"),
        G: T.Buffer((THREADS,), "float32"),
        H: T.Buffer((THREADS,), "float32"),
        I: T.Buffer((THREADS,), "float32"),  # noqa: E741
        J: T.Buffer((THREADS,), "float32"),
        K: T.Buffer((THREADS,), "float32"),
        L: T.Buffer((THREADS,), "float32"),
        M: T.Buffer((THREADS,), "float32"),
        N: T.Buffer((THREADS,), "float32"),
        O: T.Buffer((THREADS,), "float32"),  # noqa: E741
        P: T.Buffer((THREADS,), "float32"),
        Out: T.Buffer((THREADS,), "float32"),
    ):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        Out[tx] = (A[tx] + B[tx] * 2.0 + C[tx] * 3.0 + D[tx] * 4.0 + E[tx] * 5.0 + F[tx] * 6.0) + (
            G[tx] + H[tx] + I[tx] + J[tx] + K[tx] + L[tx] + M[tx] + N[tx] + O[tx] - P[tx] * 7.0
        )

    kernel = compiled(gather)
    assert kernel.kernel.in_memory and kernel.kernel.argument_bytes == 17 * 8
    arrays = {
        name: np.arange(THREADS, dtype=np.float32) * (number + 1)
        for number, name in enumerate("ABCDEFGHIJKLMNOP")
    }
    out = np.zeros(THREADS, np.float32)
    kernel(1, Out=out, **arrays)
    factors = [1, 2, 3, 4, 5, 6, *[1] * 9, -7]
    weights = sum(factor * (number + 1) for number, factor in enumerate(factors))
    np.testing.assert_array_equal(out, np.arange(THREADS, dtype=np.float32) * weights)
