"""Exchanges between the lanes of a warp, with subgroups of a warp, smaller ones, and none."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import struct

import numpy as np
import pytest
import tvm
import tvm_ffi
from small_kernels import compiled, lowered, vulkan_target
from spirv_device import Memory, Shader
from tvm.script import tirx as T

from gecko_mlc.compile import CompileError

ALL = 0xFFFFFFFF
THREADS = 64
LANE = np.arange(THREADS) % 32
FIRST = np.arange(THREADS) - LANE

SOURCES = {
    "xor 1": (lambda v: T.tvm_warp_shuffle_xor(T.uint32(ALL), v, 1, 32, 32), FIRST + (LANE ^ 1)),
    "xor 4": (lambda v: T.tvm_warp_shuffle_xor(T.uint32(ALL), v, 4, 32, 32), FIRST + (LANE ^ 4)),
    "xor 31": (lambda v: T.tvm_warp_shuffle_xor(T.uint32(ALL), v, 31, 32, 32), FIRST + (LANE ^ 31)),
    "up 3": (
        lambda v: T.tvm_warp_shuffle_up(T.uint32(ALL), v, 3, 32, 32),
        FIRST + np.where(LANE >= 3, LANE - 3, LANE),
    ),
    "down 9": (
        lambda v: T.tvm_warp_shuffle_down(T.uint32(ALL), v, 9, 32, 32),
        FIRST + np.where(LANE < 23, LANE + 9, LANE),
    ),
    "lane 5": (lambda v: T.tvm_warp_shuffle(T.uint32(ALL), v, 5, 32, 32), FIRST + 5),
}


def shuffler(name: str, dtype: str):
    shuffle = SOURCES[name][0]

    @T.prim_func(private=True)
    def exchange(A: T.Buffer((THREADS,), dtype), B: T.Buffer((THREADS,), dtype)):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        B[tx] = shuffle(A[tx]) + A[tx]

    return exchange


@pytest.mark.parametrize("subgroup", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_lane_gets_another_lanes_value(name, dtype, subgroup):
    a = (np.arange(THREADS) ** 2 - 99).astype(dtype)
    b = np.zeros_like(a)
    kernel = compiled(shuffler(name, dtype), subgroup)
    kernel(1, A=a, B=b)
    np.testing.assert_array_equal(b, a[SOURCES[name][1]] + a)
    within = subgroup == 8 and name in ("xor 1", "xor 4")
    assert kernel.kernel.subgroup == (8 if within else 0)
    assert kernel.kernel.shared == (0 if within else 2 * THREADS * 4)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("name", SOURCES)
def test_a_subgroup_of_a_warp_shuffles(name, dtype):
    """On the device in Python: no driver for the CPU has such subgroups."""
    a = (np.arange(THREADS) ** 2 + 99).astype(dtype)
    kernel = compiled(shuffler(name, dtype), subgroup=32).kernel
    assert kernel.subgroup == 32 and kernel.shared == 0
    memory, b = Memory(), bytearray(a.nbytes)
    addresses = [memory.add(bytearray(a.tobytes())), memory.add(b)]
    Shader(kernel.spirv).run(memory, struct.pack("<QQ", *addresses), workgroups=1)
    np.testing.assert_array_equal(np.frombuffer(b, dtype), a[SOURCES[name][1]] + a)


@pytest.mark.parametrize("name", SOURCES)
def test_a_subgroup_of_two_warps_is_valid(name):
    kernel = compiled(shuffler(name, "float32"), subgroup=64).kernel
    assert kernel.subgroup == 64 and kernel.shared == 0


def wide_reduction(rounds: int):
    """An odd number of exchanges in each turn of a loop, then some under a uniform condition."""

    @T.prim_func(private=True)
    def reduce(A: T.Buffer((THREADS,), "float32"), B: T.Buffer((THREADS,), "float32"), n: T.int32):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        v = T.alloc_local((1,), "float32")
        turns = T.alloc_local((1,), "int32")
        v[0] = A[tx]
        turns[0] = n * 2
        for turn in range(turns[0]):
            for step in T.unroll(rounds):
                v[0] = v[0] + T.tvm_warp_shuffle_xor(T.uint32(ALL), v[0], 16 >> step, 32, 32)
            v[0] = v[0] * T.float32(0.25) + T.cast(turn, "float32")
        if n == 3:
            v[0] = T.max(v[0], T.tvm_warp_shuffle_up(T.uint32(ALL), v[0], 1, 32, 32))
        else:
            v[0] = T.min(v[0], T.tvm_warp_shuffle_down(T.uint32(ALL), v[0], 2, 32, 32))
        v[0] = v[0] - T.tvm_warp_shuffle(T.uint32(ALL), v[0], (tx + 7) % 32, 32, 32)
        B[tx] = v[0]

    return reduce


@pytest.mark.parametrize("limit", [32768, THREADS * 4])
@pytest.mark.parametrize("subgroup", [1, 8])
@pytest.mark.parametrize("n", [3, 2])
def test_exchanges_in_loops_and_branches(n, subgroup, limit):
    """With room for one area of exchange only, and for the two that are to take turns."""
    rounds = 3
    kernel = compiled(wide_reduction(rounds), subgroup, max_shared_memory_per_block=limit)
    assert kernel.kernel.shared == min(limit, 2 * THREADS * 4)
    a = np.random.default_rng(3).standard_normal(THREADS).astype(np.float32)
    b = np.zeros_like(a)
    for _ in range(20):
        kernel(1, A=a, B=b, n=n)
        v = a.copy()
        for turn in range(2 * n):
            for step in range(rounds):
                v = v + v[FIRST + (LANE ^ 16 >> step)]
            v = v * np.float32(0.25) + np.float32(turn)
        v = np.maximum(v, v[SOURCE_UP]) if n == 3 else np.minimum(v, v[SOURCE_DOWN])
        v = v - v[FIRST + (LANE + 7) % 32]
        np.testing.assert_allclose(b, v, rtol=1e-5, atol=1e-5)


def test_a_barrier_that_may_be_skipped_does_not_separate_exchanges():
    """The second exchange must not reuse memory of the first while others still load from it; which
    threads do is up to the device, so this looks at the lowered kernel.
    """

    @T.prim_func(private=True)
    def twice(A: T.Buffer((THREADS,), "float32"), n: T.int32):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        v = T.alloc_local((1,), "float32")
        v[0] = SOURCES["xor 31"][0](A[tx])
        for _turn in range(n):
            T.tvm_storage_sync("shared")
        A[tx] = SOURCES["up 3"][0](v[0] * T.float32(3))

    module = tvm.IRModule({"twice": twice.with_attr("global_symbol", "twice")})
    (kernel,) = lowered(module, vulkan_target(subgroup=1))
    stores = []
    tvm_ffi.structural_walk(kernel.body, (tvm.tirx.BufferStore, lambda store: stores.append(store)))
    first, second = (store.indices[0] for store in stores if store.buffer.name == "exchanged")
    assert not tvm_ffi.structural_equal(first, second)


SOURCE_UP = FIRST + np.maximum(LANE - 1, 0)
SOURCE_DOWN = FIRST + np.where(LANE < 30, LANE + 2, LANE)


def divergent(shuffle):
    @T.prim_func(private=True)
    def some(A: T.Buffer((THREADS,), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        many = T.alloc_local((1,), "int32")
        many[0] = 3
        if tx < 32:
            many[0] = 4
        for _turn in range(many[0]):
            A[tx] = shuffle(A[tx])

    return some


def test_an_exchange_where_only_some_threads_come_is_refused():
    wanted = "kernel test_kernel: a tvm_warp_shuffle_xor of float32 where only some threads"
    with pytest.raises(CompileError, match=wanted):
        compiled(divergent(SOURCES["xor 1"][0]), subgroup=1)
    # A subgroup's own shuffle needs its subgroup alone.
    assert compiled(divergent(SOURCES["xor 1"][0]), subgroup=8).kernel.subgroup == 8


def test_an_exchanged_value_differs_between_threads():
    @T.prim_func(private=True)
    def some(A: T.Buffer((THREADS,), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        if SOURCES["up 3"][0](A[tx]) > T.float32(0):
            A[tx] = SOURCES["xor 31"][0](A[tx])

    with pytest.raises(CompileError, match="where only some threads of the CTA come"):
        compiled(some, subgroup=8)


def test_registers_by_another_name_differ_too():
    @T.prim_func(private=True)
    def some(A: T.Buffer((THREADS,), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        one = T.alloc_local((2,), "int32")
        other = T.decl_buffer((2,), "int32", data=one.data, scope="local")
        other[0] = tx
        if one[0] > 5:
            A[tx] = SOURCES["xor 31"][0](A[tx])

    with pytest.raises(CompileError, match="where only some threads of the CTA come"):
        compiled(some, subgroup=8)


def test_an_exchange_in_a_conditional_expression_is_refused():
    @T.prim_func(private=True)
    def some(A: T.Buffer((THREADS,), "float32"), n: T.int32):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([THREADS])
        A[tx] = T.if_then_else(n == 1, SOURCES["up 3"][0](A[tx]), T.float32(0))

    with pytest.raises(CompileError, match="evaluated on a condition"):
        compiled(some, subgroup=8)


def test_threads_that_are_no_whole_warps_are_refused():
    @T.prim_func(private=True)
    def some(A: T.Buffer((40,), "float32")):
        T.device_entry()
        _group = T.cta_id([1])
        tx = T.thread_id([40])
        A[tx] = SOURCES["up 3"][0](A[tx])

    with pytest.raises(CompileError, match="40 threads, which are no whole warps"):
        compiled(some, subgroup=8)
