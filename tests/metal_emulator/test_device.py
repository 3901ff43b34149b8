"""The emulated Metal device itself: threads, memory, numbers, and what it refuses."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import tvm

import metal_emulator
from metal_emulator.program import run_text, run_threadgroup
from metal_emulator.saved_module import SavedKernel, read_module

LANES = np.arange(32, dtype=np.uint32)
X = np.arange(64, dtype=np.uint32)
EVERY_ORDER = pytest.mark.parametrize("order", metal_emulator.ORDERS)
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@EVERY_ORDER
def test_barrier_orders_threadgroup_memory(order: str) -> None:
    x = np.arange(256, dtype=np.uint32)
    body = f"threadgroup uint words[256];\nwords[i] = x[i]; {BARRIER} y[i] = words[255 - i];"
    assert np.array_equal(run_threadgroup(body, x, 256, 256, order), x[::-1])


def test_missing_barrier_shows() -> None:
    """In one order some neighbours are read too early, in the other the others."""
    body = "threadgroup uint words[32];\nwords[i] = x[i]; y[i] = words[31 - i];"
    forward, reverse = (
        run_threadgroup(body, LANES, 32, order=order) for order in ("forward", "reverse")
    )
    assert not np.array_equal(forward, reverse)


@EVERY_ORDER
@pytest.mark.parametrize(
    "call, source",
    [
        ("simd_shuffle(v, i ^ 5)", LANES ^ 5),
        ("simd_shuffle(v, 7)", np.full(32, 7)),
        ("simd_shuffle_up(v, 3)", np.where(LANES >= 3, LANES - 3, LANES)),
        ("simd_shuffle_down(v, 3)", np.where(LANES < 29, LANES + 3, LANES)),
        ("simd_shuffle_xor(v, 16)", LANES ^ 16),
    ],
)
def test_shuffle(call: str, source: np.ndarray, order: str) -> None:
    x = 100 + LANES
    body = f"const uint v = x[i]; y[i] = {call}; simdgroup_barrier(mem_flags::mem_none);"
    assert np.array_equal(run_threadgroup(body, x, 32, order=order), x[source])


def test_fresh_memory_is_nan() -> None:
    metal_emulator.install()
    device = tvm.runtime.device("metal", 0)
    for dtype in ("float32", "float16"):
        assert np.isnan(tvm.runtime.empty((1000,), dtype, device).numpy()).all()
    found = run_threadgroup("threadgroup uint words[32];\ny[i] = words[i];", X, 32)
    assert np.isnan(found.view(np.float32)).all()


@pytest.mark.parametrize(
    "body, message",
    [
        ("y[i + 1] = 0;", "illegal address: byte 256 of the 256 bytes at"),
        ("thread int a[4] = {}; a[x[i]] = 1; y[i] = a[0];", "index out of bounds"),
        ("threadgroup uint a[63];\na[i] = 1;", "of an array in threadgroup memory"),
        (
            "threadgroup uint4 a[16];\n"
            "*(threadgroup uint4*)(((threadgroup uint*)a) + 4 * i) = uint4(1u);",
            "of an array in threadgroup memory",
        ),
        ("threadgroup uint a[64];\n*(threadgroup uint4*)(a + 0) = uint4(1u);", "misaligned"),
        ("*(device uint4*)(y + 4 * (i % 2) + 1) = uint4(1u);", "misaligned"),
        ("int zero = 0 * int(x[1]); y[i] = int(x[0]) / zero;", "integer division by zero"),
        (f"if (i < 63) {BARRIER}", "deadlock: of 64 threads 1 have ended, 63 wait at a barrier"),
        (f"if (i < 32) {BARRIER}\nelse {BARRIER}", "meet at different barriers"),
        ("y[i] = simd_shuffle(x[i], 32);", "reads a lane that is not there"),
        ("if (i % 2) y[i] = simd_shuffle(x[i], 2);", "reads a lane that is not there"),
    ],
)
def test_what_is_wrong_is_reported(body: str, message: str) -> None:
    with pytest.raises(RuntimeError, match="launch of program failed") as error:
        run_threadgroup(body, X, 64, 64)
    assert message in str(error.value)
    # The device still works.
    assert (run_threadgroup("y[i] = 1;", X, 64, 64) == 1).all()


@pytest.mark.parametrize(
    "body, message",
    [
        ("y[i] = expm1f(1.0f);", "expm1f"),
        ("y[i] = __float_as_uint(1.0f);", "__float_as_uint"),
        ("long v = x[i]; y[i] = simd_shuffle(v, 0);", "a type that simd_shuffle moves"),
        ("half4 v = half4(1.0h); float4 w = v;", "conversion"),
        ("y[i] = as_type<uint>(1.0h);", "as_type keeps all bits"),
        ("uint3 v = uint3(1u, 2u);", "as many values as elements"),
        ("double v = 1.0;", "double is no MSL"),
        ("y[i] = *(uint*)(x + i);", "a pointer without an address space"),
        ("uint kernel = 1;", "a word of MSL"),
        ("threadgroup float words[8193];", "32772 bytes of threadgroup memory"),
    ],
)
def test_what_is_no_msl_is_refused(body: str, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError)) as error:
        run_threadgroup(f"{body}\n", X, 64)
    assert message in str(error.value)


def test_arguments_have_their_places() -> None:
    text = "kernel void program(  device uint* x [[ buffer(0) ]],\n  {}\n) {{\n}}\n"
    thread = "uint i [[thread_position_in_threadgroup]]"
    for arguments, message in [
        (f"device uint* y [[ buffer(2) ]],\n  {thread}", "buffer 1 is at index 2"),
        (f"device uint* y,\n  {thread}", "cannot place the argument 'device uint* y'"),
        ("device uint* y [[ buffer(1) ]],\n  uint i [[thread_index]]", "cannot place"),
        (
            ",\n  ".join(f"device uint* y{n} [[ buffer({n}) ]]" for n in range(1, 32)),
            "32 buffers, Metal has 31",
        ),
        (thread, "program has 1 buffers, launched with 2"),
    ]:
        with pytest.raises(ValueError, match="program") as error:
            run_text(text.format(arguments), X, 64)
        assert message in str(error.value)


def test_a_handle_is_no_address() -> None:
    metal_emulator.install()
    tensor = tvm.runtime.tensor(X, tvm.runtime.device("metal", 0))
    text = "kernel void program(  device uint* x [[ buffer(0) ]]\n) {\n}\n"
    program = metal_emulator.load_kernels([SavedKernel("program", ["handle"], [], text)])["program"]
    program(ctypes.c_void_p(tensor.data_ptr()))
    with pytest.raises(ValueError, match="is no buffer"):
        program(ctypes.c_void_p(tensor.data_ptr() + 4))


def test_numbers_are_passed_as_the_runtime_does() -> None:
    """Each in 8 bytes, those of 32 bits in the first half."""
    text = """
struct program_args_t {
  int a[2];
  long b;
  float c[2];
};

kernel void program(  device float* y [[ buffer(0) ]],
  constant program_args_t& arg [[ buffer(1) ]],
  uint2 group [[threadgroup_position_in_grid]],
  uint2 i [[thread_position_in_threadgroup]]
) {
  y[group.y * 2 + i.x] = arg.a[0] + arg.c[0] + float(arg.b);
}
"""
    kernel = SavedKernel(
        "program", ["handle", "int32", "int64", "float32"], ["blockIdx.y", "threadIdx.x"], text
    )
    device = tvm.runtime.device("metal", 0)
    y = tvm.runtime.tensor(np.zeros(6, np.float32), device)
    program = metal_emulator.load_kernels([kernel])["program"]
    program(ctypes.c_void_p(y.data_ptr()), -3, 1 << 40, 0.5, 3, 2)
    assert (y.numpy() == np.float32((1 << 40) - 2.5)).all()


def test_half_rounds_every_result() -> None:
    a, b = np.random.default_rng(2).standard_normal((2, 256)).astype(np.float16)
    body = """
    device half* in = (device half*)(x + 0);
    device half* out = (device half*)(y + 0);
    out[i] = in[i] + in[i + 256];
    out[i + 256] = in[i] * in[i + 256];
    out[i + 512] = exp(in[i]);
    """
    found = run_threadgroup(body, np.concatenate([a, b]), 384, 256).view(np.float16)
    c, d = a.astype(np.float64), b.astype(np.float64)
    wanted = np.concatenate([c + d, c * d, np.exp(c)]).astype(np.float16)
    assert np.array_equal(found, wanted)


def test_modules_in_another_form() -> None:
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    nothing = bytes(8)
    assert read_module(text("metal") + nothing + nothing) == []
    for saved, message in [
        (text("metallib") + nothing + nothing, "wanted MSL"),
        (text("metal") + nothing + nothing + b"x", "1 bytes after the module's end"),
        (text("metal") + nothing + b"\1" + bytes(7) + text("k") + text(""), "sources of"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_module(saved)
