"""Inline PTX on the emulated device, each instruction against its definition in the PTX ISA."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from cuda_emulator import ORDERS
from cuda_emulator.block_program import run_block
from cuda_emulator.ptx import AssemblyError, translate_assembly

TYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
LANE = np.arange(32)
# The rows and the first of two columns of a lane's words in fragments of 16 x 16.
WORD_ROW = LANE[:, None] // 4 + np.array([0, 8, 0, 8])
WORD_COLUMN = LANE[:, None] % 4 * 2 + np.array([0, 0, 8, 8])


def words(matrix: np.ndarray) -> np.ndarray:
    """Two neighbouring 16-bit elements as one word."""
    return np.ascontiguousarray(matrix).view(np.uint32)


def test_unknown_instruction_is_named() -> None:
    with pytest.raises(AssemblyError, match=re.escape("the instruction wgmma.nothing.sync")):
        translate_assembly('void f() { asm volatile("wgmma.nothing.sync 1;"); }')
    with pytest.raises(AssemblyError, match=re.escape("cp.async.wait_group with 2 operands")):
        translate_assembly('void f() { asm volatile("cp.async.wait_group 1, 2;"); }')


def test_statements_predicates_and_labels() -> None:
    """A loop that doubles until 100 is reached, except where a predicate says no."""
    body = """
    uint32_t v = x[threadIdx.x];
    asm volatile(
        "{\\n"
        ".reg .pred p, q;  // two\\n"
        "setp.eq.u32 q, %1, 7;\\n"
        "AGAIN:\\n"
        "setp.ge.u32 p, %0, 100;\\n"
        "@p bra DONE;\\n"
        "@q bra.uni DONE;\\n"
        "mov.b32 %0, %2;\\n"
        "bra AGAIN;\\n"
        "DONE:\\n"
        "@!q mov.u32 %0, 5;\\n"
        "}\\n" : "+r"(v) : "r"(threadIdx.x), "r"(v * 2 + 100) : "memory");
    y[threadIdx.x] = v;
    """
    found = run_block(body, LANE.astype(np.uint32), 32, 32)
    assert np.array_equal(found, np.where(LANE == 7, 7, 5))


def test_float_bits_pass_through_registers() -> None:
    body = """
    float v = ((const float*)x)[threadIdx.x], w; uint32_t packed;
    asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2+8];"
        : "=f"(w), "=r"(packed) : "l"(x) : "memory");
    y[threadIdx.x] = packed;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(v + w));
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(v), "f"(w));
    y[32 + threadIdx.x] = packed;
    """
    x = np.arange(32, dtype=np.float32) / 4
    first, second = run_block(body, x, 64, 32).reshape(2, 32)
    assert (first.view(np.float32) == 0.75).all()
    bf16 = TYPES["bf16"]
    wanted = np.stack([np.full(32, 0.5, np.float32), np.exp2(x + np.float32(0.5))], axis=1)
    assert np.array_equal(second, words(wanted.astype(bf16)).ravel())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("order", ORDERS)
def test_mma(name: str, order: str) -> None:
    rng = np.random.default_rng(3)
    a = rng.standard_normal((16, 16)).astype(TYPES[name])
    b = rng.standard_normal((8, 16)).astype(TYPES[name])  # by columns
    c = rng.standard_normal((16, 8)).astype(np.float32)
    sums = (LANE[:, None] // 4 + np.array([0, 0, 8, 8]), LANE[:, None] % 4 * 2 + [0, 1, 0, 1])
    x = np.concatenate(
        [
            words(a)[WORD_ROW, WORD_COLUMN // 2],
            words(b)[LANE[:, None] // 4, (LANE[:, None] % 4 * 2 + np.array([0, 8])) // 2],
            c[sums].view(np.uint32),
        ],
        axis=1,
    )
    body = f"""
    const uint32_t* w = x + threadIdx.x * 10;
    const float* c = (const float*)(w + 6);
    float* d = (float*)y + threadIdx.x * 4;
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32 "
        "{{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%10, %11, %12, %13}};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "r"(w[4]), "r"(w[5]),
          "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
    """
    found = run_block(body, x.astype(np.uint32), 128, 32, order).view(np.float32)
    wanted = a.astype(np.float64) @ b.astype(np.float64).T + c
    np.testing.assert_allclose(found.reshape(32, 4), wanted[sums], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count: int, trans: str) -> None:
    """8 x 8 matrices whose rows lie in reverse order; stmatrix puts them back elsewhere."""
    matrices = np.random.default_rng(4).integers(0, 1 << 16, (4, 8, 8), dtype=np.uint16)
    registers = ", ".join(f"%{i}" for i in range(count))
    results = ", ".join(f'"=r"(w[{i}])' for i in range(count))
    operands = ", ".join(f'"r"(w[{i}])' for i in range(count))
    form = f"sync.aligned.m8n8.x{count}{trans}.shared.b16"
    body = f"""
    uint32_t w[4];
    uint4* rows = (uint4*)shared;
    rows[31 - threadIdx.x] = ((const uint4*)x)[threadIdx.x];
    __syncthreads();
    asm volatile("ldmatrix.{form} {{{registers}}}, [%{count}];" : {results}
        : "r"((uint32_t)__cvta_generic_to_shared(rows + 31 - threadIdx.x)) : "memory");
    for (int i = 0; i < {count}; ++i) y[i * 32 + threadIdx.x] = w[i];
    asm volatile("stmatrix.{form} [%{count}], {{{registers}}};" : : {operands},
        "r"((uint32_t)__cvta_generic_to_shared(rows + 32 + threadIdx.x)) : "memory");
    __syncthreads();
    ((uint4*)y)[32 + threadIdx.x] = rows[32 + threadIdx.x];
    """
    loaded, stored = run_block(body, matrices, 256, 32).reshape(2, -1)[:, : count * 32]
    # Lane l has elements 2 (l mod 4) and the next of row l / 4.
    wanted = matrices.transpose(0, 2, 1) if trans else matrices
    assert np.array_equal(loaded, words(wanted).ravel()[: count * 32])
    assert np.array_equal(stored, words(matrices).ravel()[: count * 32])


ASYNCHRONOUS = """
    const uint32_t to = __cvta_generic_to_shared(shared) + threadIdx.x * 16;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
        : : "r"(to), "l"(x + threadIdx.x * 4), "r"(threadIdx.x % 5 * 4) : "memory");
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
        : : "r"(to + 512), "l"(x + threadIdx.x) : "memory");
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group WAIT;" ::: "memory");
    for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = ((uint32_t*)shared)[threadIdx.x * 4 + i];
    y[128 + threadIdx.x] = ((uint32_t*)shared)[128 + threadIdx.x * 4];
"""


@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copy(order: str) -> None:
    x = np.arange(1, 129, dtype=np.uint32)
    found = run_block(ASYNCHRONOUS.replace("WAIT", "0"), x, 160, 32, order)
    kept = np.arange(4) < (LANE % 5)[:, None]
    assert np.array_equal(found[:128], np.where(kept, x.reshape(32, 4), 0).ravel())
    assert np.array_equal(found[128:], x[:32])


def test_waiting_for_too_few_copies_shows() -> None:
    x = np.arange(1, 129, dtype=np.uint32)
    forward, reverse = (
        run_block(ASYNCHRONOUS.replace("WAIT", "1"), x, 160, 32, order)
        for order in ("forward", "reverse")
    )
    assert np.array_equal(forward[:128], reverse[:128])
    assert (reverse[128:] == 0xFFFFFFFF).all()


@pytest.mark.parametrize("order", ORDERS)
def test_one_lane_is_elected(order: str) -> None:
    body = """
    uint32_t leader, elected;
    asm volatile("{ .reg .pred p; elect.sync %0|p, %2; selp.b32 %1, 1, 0, p; }"
        : "=r"(leader), "=r"(elected) : "r"(~0u));
    y[threadIdx.x] = elected * 100 + leader;
    """
    found = run_block(body, np.zeros(1, np.uint32), 32, 32, order)
    assert found.tolist() == [100] + [0] * 31


@pytest.mark.parametrize("order", ORDERS)
def test_mbarrier_passes_a_ring_of_values(order: str) -> None:
    """One warp fills a single place, the other empties it, four times over."""
    body = """
    const uint32_t full = __cvta_generic_to_shared(shared), empty = full + 8;
    uint32_t* words = (uint32_t*)(shared + 64);
    auto wait = [](uint32_t barrier, uint32_t parity) {
      asm volatile("{ .reg .pred P1; LAB: mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;"
                   " @P1 bra.uni DONE; bra.uni LAB; DONE: }" : : "r"(barrier), "r"(parity));
    };
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(full), "r"(32) : "memory");
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(empty), "r"(32) : "memory");
    }
    __syncthreads();
    for (uint32_t turn = 0; turn < 4; ++turn) {
      if (threadIdx.x < 32) {
        wait(empty, turn % 2 ^ 1);
        words[threadIdx.x] = x[threadIdx.x] + turn;
        asm volatile("mbarrier.arrive.shared.b64 _, [%0];" : : "r"(full) : "memory");
      } else {
        wait(full, turn % 2);
        y[turn * 32 + threadIdx.x - 32] = words[63 - threadIdx.x];
        asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], 1;" : : "r"(empty));
      }
    }
    """
    x = np.arange(32, dtype=np.uint32) * 10
    found = run_block(body, x, 128, 64, order)
    assert np.array_equal(found.reshape(4, 32), x[::-1] + np.arange(4)[:, None])
