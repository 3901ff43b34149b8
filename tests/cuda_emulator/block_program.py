"""Small programs in CUDA C++ that one block runs, for tests of the device itself."""

from __future__ import annotations

import numpy as np
from tvm.script import tirx as T

from cuda_emulator.device_kernel import DeviceKernel


class BlockProgram:
    """A body in CUDA C++ that every thread of one block runs.

    It sees ``const uint32_t* x`` (``words_in``), ``uint32_t* y`` (``words_out``) and
    ``unsigned char* shared`` (32 KiB, at a multiple of 1024).
    """

    def __init__(self, body: str, threads: int, words_in: int, words_out: int) -> None:
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
                "program",
                X.ptr_to([0]),
                Y.ptr_to([0]),
                shared.ptr_to([0]),
                source_code=source,
            )

        self._kernel = DeviceKernel(kernel, "sm_90a")
        self._words_out = words_out

    def __call__(self, x: np.ndarray, order: str = "forward") -> np.ndarray:
        """y; what no thread writes is all ones."""
        words = np.ascontiguousarray(x).view(np.uint32).ravel()
        y = np.full(self._words_out, 0xFFFFFFFF, np.uint32)
        return self._kernel(words, y, order=order)[1]
