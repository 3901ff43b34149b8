"""sm_90a on the emulated device: products of a warpgroup, tensor copies, clusters."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import tirx as T

from cuda_emulator import ORDERS
from cuda_emulator.block_program import run_block
from cuda_emulator.device_kernel import DeviceKernel

# Bytes of a swizzled span, and what descriptors and tensor maps call it.
SPANS = {128: (1, 3), 64: (2, 2), 32: (3, 1), 16: (0, 0)}
M, N = 64, 24


def swizzled(rows: np.ndarray, span: int) -> np.ndarray:
    """Rows of ``span`` bytes as they lie in memory, eight of them at a multiple of 8 spans.

    In 1024 bytes, the 16-byte chunks of one column of chunks lie in different banks.
    """
    chunks = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), span // 16, 16)
    row, chunk = np.arange(len(rows))[:, None], np.arange(span // 16)
    placed = np.empty_like(chunks)
    placed[row, chunk ^ (row * span // 128) % (span // 16)] = chunks
    return placed.reshape(-1)


def operand(matrix: np.ndarray, span: int, transposed: bool) -> tuple[np.ndarray, int]:
    """How a matrix [rows, depth] lies in shared memory, and its descriptor but for the address.

    Otherwise than ``transposed``, a span holds neighbours in depth; spans follow each other by row.
    """
    mode = SPANS[span][0] << 62
    wide = matrix.T if transposed else matrix
    panels = np.split(wide, wide.shape[1] * 2 // span, axis=1)
    size = len(wide) * span
    if span == 16:
        # Eight rows of 16 bytes are a core matrix; they lie one after the other down, then across.
        leading, stride = (128, size) if transposed else (size, 128)
    else:
        leading, stride = size, 8 * span
    fields = mode | (leading >> 4) << 16 | (stride >> 4) << 32
    return np.concatenate([swizzled(panel, span) for panel in panels]), fields


EVERY_ORDER = pytest.mark.parametrize("order", ORDERS)


@EVERY_ORDER
@pytest.mark.parametrize(
    "span_a, transposed_a, span_b, transposed_b",
    [
        (128, False, 128, False),
        (64, False, 32, False),
        (16, False, 64, False),
        (32, False, 16, False),
        (128, True, 16, True),
        (64, True, 16, False),
        (32, True, 128, False),
        (16, True, 16, True),
    ],
)
def test_wgmma(
    span_a: int, transposed_a: bool, span_b: int, transposed_b: bool, order: str
) -> None:
    rng = np.random.default_rng(5)
    depth = 64
    a = rng.standard_normal((M, depth)).astype(np.float16)
    b = rng.standard_normal((N, depth)).astype(np.float16)
    (bytes_a, fields_a), (bytes_b, fields_b) = (
        operand(a, span_a, transposed_a),
        operand(b, span_b, transposed_b),
    )

    def step(span: int, transposed: bool, rows: int, k: int) -> int:
        """Where depth k begins."""
        if transposed:
            return k * span
        return k * 2 // span * rows * span + k * 2 % span

    registers = N // 2
    results = ", ".join(f"%{i}" for i in range(registers))
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(registers))
    starts = [
        (step(span_a, transposed_a, M, k), step(span_b, transposed_b, N, k))
        for k in range(0, depth, 16)
    ]
    products = "".join(
        f"""multiply({fields_a}ull | (address + {of_a}) >> 4,
                     {fields_b}ull | (address + 16384 + {of_b}) >> 4, {int(i > 0)});"""
        for i, (of_a, of_b) in enumerate(starts)
    )
    body = f"""
    for (int i = threadIdx.x; i < 8192; i += 128) ((uint32_t*)shared)[i] = x[i];
    __syncthreads();
    const uint64_t address = __cvta_generic_to_shared(shared);
    float d[{registers}];
    auto multiply = [&](uint64_t a, uint64_t b, int keep) {{
      asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{registers + 2}, 0; "
        "wgmma.mma_async.sync.aligned.m64n{N}k16.f32.f16.f16 {{{results}}}, "
        "%{registers}, %{registers + 1}, p, 1, -1, {int(transposed_a)}, {int(transposed_b)}; }}"
        : {outputs} : "l"(a), "l"(b), "r"(keep));
    }};
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    {products}
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int i = 0; i < {registers}; ++i) ((float*)y)[threadIdx.x * {registers} + i] = d[i];
    """
    memory = np.zeros(32768, np.uint8)
    memory[: len(bytes_a)] = bytes_a
    memory[16384 : 16384 + len(bytes_b)] = bytes_b
    found = run_block(body, memory, 128 * registers, 128, order).view(np.float32)
    thread, i = np.arange(128)[:, None], np.arange(registers)
    row = thread // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    column = i // 4 * 8 + thread % 4 * 2 + i % 2
    wanted = -(a.astype(np.float64) @ b.astype(np.float64).T)
    np.testing.assert_allclose(
        found.reshape(128, registers), wanted[row, column], rtol=1e-4, atol=1e-4
    )


class TensorCopy:
    """A cluster in which ``body`` copies boxes of a float16 tensor [2, 20, 64] to shared memory.

    It sees uint64_t map (an address), uint32_t shared, mbarrier, and rank in the cluster. Every
    block then waits for its mbarrier, which is for one arrival, and gives back the first ``words``
    of its shared memory.
    """

    SHAPE = (2, 20, 64)

    def __init__(self, body: str, box: tuple[int, ...], swizzle: int, words: int, blocks: int):
        source = f"""
        __forceinline__ __device__ void program(uint64_t map, void* memory, void* out, int rank) {{
          const uint32_t shared = __cvta_generic_to_shared(memory), mbarrier = shared + 16384;
          uint32_t* y = (uint32_t*)out;
          if (threadIdx.x == 0) {{
            asm volatile("mbarrier.init.shared.b64 [%0], 1;" : : "r"(mbarrier) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
          }}
          asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
          asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
          if (threadIdx.x == 0) {{ {body} }}
          asm volatile("{{ .reg .pred P1;\\n"
              "LAB: mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], 0;\\n"
              "@P1 bra DONE; bra LAB; DONE: }}" : : "r"(mbarrier) : "memory");
          for (int i = threadIdx.x; i < {words}; i += 32) y[i] = ((uint32_t*)memory)[i];
        }}
        """
        planes, rows, columns = self.SHAPE

        @T.prim_func(private=True)
        def kernel(x: T.handle, y: T.handle):
            X = T.match_buffer(x, (planes, rows, columns), "float16")
            Y = T.match_buffer(y, (blocks, words), "uint32")
            tensor_map: T.let[T.handle("tensormap")] = T.tvm_stack_alloca("tensormap", 1)
            T.call_packed(
                "runtime.cuTensorMapEncodeTiled",
                tensor_map,
                "float16",
                3,
                X.data,
                columns,
                rows,
                planes,
                columns * 2,
                rows * columns * 2,
                *box,
                *(1, 1, 1),
                *(0, swizzle, 0, 0),
            )
            T.device_entry()
            rank = T.cta_id_in_cluster([blocks])
            cta = T.cta_id([blocks])
            T.thread_id([32])
            shared = T.alloc_shared((6144,), "uint32", align=1024)
            T.cuda.func_call(
                "program",
                T.address_of(tensor_map),
                shared.ptr_to([0]),
                Y.ptr_to([cta, 0]),
                rank,
                source_code=source,
            )

        self._kernel = DeviceKernel(kernel, "sm_90a")
        self._results = blocks, words

    def __call__(self, x: np.ndarray, order: str) -> np.ndarray:
        """The words as bytes, for each block."""
        y = np.full(self._results, 0xFFFFFFFF, np.uint32)
        return self._kernel(x, y, order=order)[1].view(np.uint8)


EXPECT = """
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
        : : "r"(mbarrier), "r"(BYTES) : "memory");
"""
LOAD = """
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4}], [%5];"
        : : "r"(shared), "l"(map), "r"(X0), "r"(X1), "r"(X2), "r"(mbarrier) : "memory");
"""


def tensor() -> np.ndarray:
    return np.random.default_rng(6).standard_normal(TensorCopy.SHAPE).astype(np.float16)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("start", [(0, 0, 0), (32, 9, 1), (-8, 15, 1), (40, -3, 0)])
def test_tensor_copy(span: int, start: tuple[int, int, int]) -> None:
    """Elements outside of the tensor are 0; the box lies swizzled."""
    columns = span // 2
    body = (EXPECT + LOAD).replace("BYTES", str(columns * 8 * 2 * 2))
    for i, at in enumerate(start):
        body = body.replace(f"X{i}", str(at))
    x = tensor()
    copy = TensorCopy(body, (columns, 8, 2), SPANS[span][1], columns * 8, 1)
    around = np.pad(x, 64)
    plane, row, column = (at + 64 for at in reversed(start))
    box = around[plane : plane + 2, row : row + 8, column : column + columns]
    for order in ORDERS:
        assert np.array_equal(copy(x, order)[0], swizzled(box.reshape(16, columns), span))


@EVERY_ORDER
def test_copy_to_every_block_of_a_cluster(order: str) -> None:
    """Each of two blocks loads half and sends it to both; each waits for all of it."""
    body = (
        EXPECT.replace("BYTES", "2048")
        + """
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;"
        : : "r"(shared + 1024 * rank), "l"(map), "r"(0), "r"(8 * rank), "r"(1), "r"(mbarrier),
            "h"((uint16_t)3) : "memory");
    """
    )
    x = tensor()
    found = TensorCopy(body, (64, 8, 1), 0, 512, 2)(x, order)
    assert np.array_equal(
        found, np.broadcast_to(x[1, :16].view(np.uint8).reshape(1, -1), (2, 2048))
    )


@EVERY_ORDER
def test_writing_to_another_block_of_the_cluster(order: str) -> None:
    body = """
    uint32_t place, counter;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(shared), "r"(1 - rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(counter) : "r"(mbarrier), "r"(1 - rank));
    asm volatile("st.shared::cluster.v2.f32 [%0+8], {%1, %2};"
        : : "r"(place), "f"(1.0f + rank), "f"(5.0f) : "memory");
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" : : "r"(counter) : "memory");
    """  # noqa: E501
    found = TensorCopy(body, (64, 8, 1), 0, 4, 2)(tensor(), order).view(np.float32)
    assert np.isnan(found[:, :2]).all()
    assert np.array_equal(found[:, 2:], [[2, 5], [1, 5]])
