"""Small programs in MSL that one threadgroup runs, for tests of the device itself."""

from __future__ import annotations

import ctypes

import numpy as np
import tvm

import metal_emulator
from metal_emulator.saved_module import SavedKernel

_TEXT = """
#include <metal_stdlib>
using namespace metal;

kernel void program(  device uint* x [[ buffer(0) ]],
  device uint* y [[ buffer(1) ]],
  uint group [[threadgroup_position_in_grid]],
  uint i [[thread_position_in_threadgroup]]
) {{
  {body}
}}
"""


def run_threadgroup(
    body: str, x: np.ndarray, words_out: int, threads: int = 32, order: str = "forward"
) -> np.ndarray:
    """What one threadgroup leaves in y, uint32 [words_out], each of its threads running ``body``.

    The body sees ``device uint* x``, ``device uint* y`` (all ones at first) and ``uint i``, the
    thread.
    """
    return run_text(_TEXT.format(body=body), x, words_out, threads, order)


def run_text(
    text: str, x: np.ndarray, words_out: int, threads: int = 32, order: str = "forward"
) -> np.ndarray:
    """The same for the text of a whole kernel called ``program``."""
    kernel = SavedKernel("program", ["handle", "handle"], ["threadIdx.x"], text)
    program = metal_emulator.load_kernels([kernel])["program"]
    device = tvm.runtime.device("metal", 0)
    words = np.ascontiguousarray(x).view(np.uint32).ravel()
    given = tvm.runtime.tensor(words, device)
    result = tvm.runtime.tensor(np.full(words_out, 0xFFFFFFFF, np.uint32), device)
    with metal_emulator.thread_order(order):
        buffers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (given, result))
        program(*buffers, threads)
    return result.numpy()
