"""Threads of the emulated device: their order, barriers, warp-wide operations, deadlocks."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_emulator import ORDERS
from cuda_emulator.block_program import run_block

LANES = np.arange(32, dtype=np.uint32)
EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)


@EVERY_ORDER
def test_barrier_orders_shared_memory(order: str) -> None:
    x = np.arange(256, dtype=np.uint32)
    body = """
    uint32_t* words = (uint32_t*)shared;
    words[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = words[255 - threadIdx.x];
    """
    assert np.array_equal(run_block(body, x, 256, 256, order), x[::-1])


def test_missing_barrier_shows() -> None:
    """In one order some neighbours are read too early, in the other the others."""
    body = """
    uint32_t* words = (uint32_t*)shared;
    words[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = words[31 - threadIdx.x];
    """
    forward, reverse = (run_block(body, LANES, 32, order=order) for order in ("forward", "reverse"))
    assert not np.array_equal(forward, reverse)


@EVERY_ORDER
@pytest.mark.parametrize(
    "call, source",
    [
        ("__shfl_xor_sync(~0u, v, 5)", LANES ^ 5),
        ("__shfl_sync(~0u, v, 7)", np.full(32, 7)),
        ("__shfl_sync(~0u, v, 11, 8)", LANES // 8 * 8 + 3),
        ("__shfl_down_sync(~0u, v, 3, 16)", np.where(LANES % 16 < 13, LANES + 3, LANES)),
        ("__shfl_up_sync(~0u, v, 3, 16)", np.where(LANES % 16 >= 3, LANES - 3, LANES)),
        ("__shfl_xor_sync(~0u, v, 16, 16)", LANES),
    ],
)
def test_shuffle(call: str, source: np.ndarray, order: str) -> None:
    x = 100 + LANES
    body = f"uint32_t v = x[threadIdx.x]; y[threadIdx.x] = {call};"
    assert np.array_equal(run_block(body, x, 32, order=order), x[source])


def test_votes_and_reductions() -> None:
    x = (LANES * np.uint32(2654435761)) % np.uint32(1009)
    body = """
    const uint32_t v = x[threadIdx.x], i = threadIdx.x;
    y[i] = __ballot_sync(~0u, v % 3 == 0);
    y[32 + i] = __any_sync(~0u, v > 5000) + 2 * __all_sync(~0u, v < 5000);
    y[64 + i] = __reduce_add_sync(~0u, v);
    y[96 + i] = __reduce_max_sync(~0u, v);
    asm volatile("redux.sync.xor.b32 %0, %1, %2;" : "=r"(y[128 + i]) : "r"(v), "r"(~0u));
    """
    ballot = sum(1 << int(lane) for lane in LANES if x[lane] % 3 == 0)
    wanted = [ballot, 2, x.sum(), x.max(), np.bitwise_xor.reduce(x)]
    assert (run_block(body, x, 160).reshape(5, 32) == np.array(wanted)[:, None]).all()


def test_half_a_warp_shuffles_alone() -> None:
    body = """
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xFFFF, x[threadIdx.x], 1);
    else y[threadIdx.x] = __shfl_xor_sync(0xFFFF0000, x[threadIdx.x], 2);
    """
    assert np.array_equal(run_block(body, LANES, 32), np.where(LANES < 16, LANES ^ 1, LANES ^ 2))


@EVERY_ORDER
def test_threads_that_end_are_not_waited_for(order: str) -> None:
    body = """
    if (threadIdx.x >= 40) return;
    uint32_t* words = (uint32_t*)shared;
    words[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = words[39 - threadIdx.x];
    """
    x = np.arange(96, dtype=np.uint32)
    assert np.array_equal(run_block(body, x, 40, 96, order), x[39::-1])


@EVERY_ORDER
def test_one_warp_arrives_another_waits(order: str) -> None:
    body = """
    uint32_t* words = (uint32_t*)shared;
    if (threadIdx.x < 32) {
      words[threadIdx.x] = x[threadIdx.x];
      asm volatile("bar.arrive 3, 64;");
    } else {
      asm volatile("bar.sync %0, 64;" : : "r"(3));
      y[threadIdx.x - 32] = words[threadIdx.x - 32];
    }
    """
    assert np.array_equal(run_block(body, LANES, 32, 64, order), LANES)


@EVERY_ORDER
def test_counting_barrier(order: str) -> None:
    body = "y[threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0);"
    assert (run_block(body, LANES, 96, 96, order) == 32).all()


@pytest.mark.parametrize(
    "body, message",
    [
        ("if (threadIdx.x == 0) while (1) __nanosleep(1); y[0] = 0;", "poll for ever"),
        (
            'if (threadIdx.x != 5) asm volatile("bar.sync 1, 64;"); y[threadIdx.x] = 0;',
            "deadlock: of 64 threads 1 have ended, 63 wait at a barrier",
        ),
        (
            "if (threadIdx.x % 32 < 16) y[0] = __shfl_xor_sync(0xFFFF, x[0], 16);",
            "a shuffle reads a lane that is not there, in block (0, 0, 0)",
        ),
        (
            "if (threadIdx.x % 32 < 16) __syncwarp(); else y[0] = __ballot_sync(~0u, 1);",
            "lanes of a warp meet in different operations",
        ),
        ("__syncwarp(2); y[0] = 0;", "a lane calls a warp-wide operation that leaves it out"),
        ("__trap(); y[0] = 0;", "trap"),
    ],
)
def test_what_cannot_go_on_is_reported(body: str, message: str) -> None:
    with pytest.raises(Exception, match="launch failed") as error:
        run_block(body, LANES, 64, threads=64)
    assert message in str(error.value)
