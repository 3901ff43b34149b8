"""Kernels that cannot be compiled: the error names the kernel and what is wrong with it."""

# TVMScript annotates parameters with calls.
# mypy: disable-error-code="valid-type"

from __future__ import annotations

import pytest
from small_kernels import compiled
from tvm.script import tirx as T

from gecko_mlc.compile import CompileError


@T.prim_func(private=True)
def half(A: T.Buffer((64,), "float16")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    A[tx] = A[tx] + T.float16(1)


@T.prim_func(private=True)
def double(A: T.Buffer((64,), "float32")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    A[tx] = T.cast(T.cast(A[tx], "float64") * T.float64(3), "float32")


@T.prim_func(private=True)
def tensor_core(A: T.Buffer((64,), "float32")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    T.evaluate(T.ptx.griddepcontrol.wait())
    A[tx] = T.float32(0)


@T.prim_func(private=True)
def library(A: T.Buffer((64,), "float32")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    A[tx] = T.call_pure_extern("float32", "lgammaf", A[tx])


@T.prim_func(private=True)
def byte(A: T.Buffer((64,), "int8")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    A[tx] = T.int8(1)


@T.prim_func(private=True)
def mixed(A: T.Buffer((64,), "float16"), B: T.Buffer((64,), "float32")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    Arena = T.alloc_buffer((256,), "uint8", scope="shared.dyn")
    Halves = T.decl_buffer((64,), "float16", data=Arena.data, scope="shared.dyn")
    Floats = T.decl_buffer((64,), "float32", data=Arena.data, scope="shared.dyn")
    Halves[tx] = A[tx]
    T.tvm_storage_sync("shared")
    Floats[tx] = T.cast(Halves[63 - tx], "float32")
    T.tvm_storage_sync("shared")
    B[tx] = Floats[63 - tx]


@T.prim_func(private=True)
def roomy(A: T.Buffer((64,), "float32")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    Shared = T.alloc_shared((5000,), "float32")
    Shared[tx] = A[tx]
    T.tvm_storage_sync("shared")
    A[tx] = Shared[63 - tx]


@T.prim_func(private=True)
def view(A: T.Buffer((64,), "float32")):
    T.device_entry()
    _group = T.cta_id([1])
    tx = T.thread_id([64])
    words = T.alloc_local((2,), "uint32")
    floats = T.decl_buffer((2,), "float32", data=words.data, scope="local")
    words[0] = T.uint32(1)
    A[tx] = floats[0]


REFUSALS = [
    (half, {"supports_float16": False}, "needs float16, which the target lacks"),
    (half, {"supports_16bit_buffer": False}, "needs storage16, which the target lacks"),
    (half, {"max_num_threads": 32}, "has 64 threads, the target allows 32"),
    (double, {}, "a value of type float64 cannot be expressed"),
    (tensor_core, {}, r"a call of ptx\.griddepcontrol"),
    (view, {}, "floats, local memory of uint32 seen as float32"),
    (library, {}, "a call of the external function lgammaf"),
    (byte, {}, "int8"),
    (mixed, {}, "elements of float16, float32, of which some are moved by less than 32 bits"),
    (
        roomy,
        {"max_shared_memory_per_block": 16384},
        "takes 20000 bytes of shared memory, the target has 16384",
    ),
]


@pytest.mark.parametrize("function, options, message", REFUSALS)
def test_the_error_names_kernel_and_cause(function, options, message):
    with pytest.raises(CompileError, match=f"kernel test_kernel.*{message}"):
        compiled(function, **options)
