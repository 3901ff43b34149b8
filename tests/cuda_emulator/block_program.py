"""Small programs in CUDA C++ that one block runs, for tests of the device itself."""

from __future__ import annotations

import functools

import numpy as np
from tvm.script import tirx as T

from cuda_emulator.device_kernel import DeviceKernel


def run_block(
    body: str, x: np.ndarray, words_out: int, threads: int = 32, order: str = "forward"
) -> np.ndarray:
    """What one block leaves in y, uint32 [words_out], each of its threads running ``body``.

    The body sees ``const uint32_t* x``, ``uint32_t* y`` (all ones at first) and ``unsigned char*
    shared``, 32 KiB at a multiple of 1024.
    """
    words = np.ascontiguousarray(x).view(np.uint32).ravel()
    y = np.full(words_out, 0xFFFFFFFF, np.uint32)
    return _program(body, threads, len(words), words_out)(words, y, order=order)[1]


@functools.cache
def _program(body: str, threads: int, words_in: int, words_out: int) -> DeviceKernel:
    source = (
        "__forceinline__ __device__ void program(void* in, void* out, void* memory) {\n"
        "  const uint32_t* x = (const uint32_t*)in;\n"
        "  uint32_t* y = (uint32_t*)out;\n"
        "  unsigned char* shared = (unsigned char*)memory;\n"
        f"  {body}\n}}\n"
    )

    @T.prim_func(private=True)
    def kernel(x: T.handle, y: T.handle):
        X = T.match_buffer(x, (words_in,), "uint32")
        Y = T.match_buffer(y, (words_out,), "uint32")
        T.device_entry()
        T.cta_id([1])
        T.thread_id([threads])
        shared = T.alloc_shared((8192,), "uint32")
        T.cuda.func_call(
            "program", X.ptr_to([0]), Y.ptr_to([0]), shared.ptr_to([0]), source_code=source
        )

    return DeviceKernel(kernel, "sm_90a")
