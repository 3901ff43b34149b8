"""Barriers: what threads of a CTA exchange through shared and through global memory."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import numpy as np
from small_kernels import compiled
from tvm.script import tirx as T

THREADS = 256


def test_a_scan_through_shared_memory():
    @T.prim_func(private=True)
    def scan(A: T.Buffer((THREADS,), "int32"), B: T.Buffer((THREADS,), "int32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        Sums = T.alloc_shared((THREADS,), "int32")
        below = T.alloc_local((1,), "int32")
        Sums[tx] = A[tx]
        T.tvm_storage_sync("shared")
        for step in range(8):
            below[0] = 0
            if tx >= 1 << step:
                below[0] = Sums[tx - (1 << step)]
            T.tvm_storage_sync("shared")
            Sums[tx] = Sums[tx] + below[0]
            T.tvm_storage_sync("shared")
        B[tx] = Sums[tx]

    a = np.random.default_rng(4).integers(-100, 100, THREADS).astype(np.int32)
    b = np.zeros_like(a)
    compiled(scan)(1, A=a, B=b)
    np.testing.assert_array_equal(b, np.cumsum(a))


def test_threads_exchange_through_global_memory():
    """Also by way of a buffer whose elements are loaded and stored in turns."""
    rounds = 6

    @T.prim_func(private=True)
    def turn(A: T.Buffer((2, THREADS), "float32")):
        T.device_entry()
        group = T.cta_id([2])
        tx = T.thread_id([THREADS])
        value = T.alloc_local((1,), "float32")
        for step in range(rounds):
            value[0] = A[group, (tx + 1) % THREADS]
            T.tvm_storage_sync("shared")
            A[group, tx] = value[0] + T.cast(step, "float32")
            T.tvm_storage_sync("shared")

    a = np.random.default_rng(5).integers(0, 100, (2, THREADS)).astype(np.float32)
    expected = np.roll(a, -rounds, axis=1) + sum(range(rounds))
    compiled(turn)(2, A=a)
    np.testing.assert_array_equal(a, expected)
