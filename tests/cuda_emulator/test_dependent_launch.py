"""Programmatic dependent launch: what a kernel may do before it waits for those before it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

import cuda_emulator
from cuda_emulator.device_kernel import DeviceKernel

LENGTH, BLOCKS = 64, 3
X = np.arange(LENGTH * BLOCKS, dtype=np.float32)
DEPENDENT = ["tirx.use_programtic_dependent_launch"]


def kernel(body: str, launch_parameters: list[str]) -> DeviceKernel:
    """Three blocks that run CUDA source: it sees float x[], float y[] and the thread's index i."""
    source = f"""
    __forceinline__ __device__ void program(void* in, void* out, int i) {{
      volatile float* x = (volatile float*)in;
      volatile float* y = (volatile float*)out;
      {body.replace("WAIT;", 'asm volatile("griddepcontrol.wait;" ::: "memory");')}
    }}
    """

    @T.prim_func(private=True)
    def program(x: T.handle, y: T.handle):
        T.func_attr({"tirx.kernel_launch_params": launch_parameters})
        X = T.match_buffer(x, (BLOCKS * LENGTH,), "float32")
        Y = T.match_buffer(y, (BLOCKS * LENGTH,), "float32")
        T.device_entry()
        block = T.cta_id([BLOCKS])
        tx = T.thread_id([LENGTH])
        T.cuda.func_call(
            "program",
            X.ptr_to([0]),
            Y.ptr_to([0]),
            block * LENGTH + tx,
            source_code=source,
        )

    return DeviceKernel(program, "sm_90a")


def after_another(body: str, launch_parameters: list[str]) -> np.ndarray:
    """z of two launches without anything between: y = x + 1, then ``body`` from y to z."""
    first = kernel("WAIT; y[i] = x[i] + 1;", DEPENDENT)
    second = kernel(body, launch_parameters)
    device = tvm.cuda(0)
    x, y, z = (tvm.runtime.tensor(array, device) for array in (X, X * 0, X * 0))
    first.function(x, y)
    second.function(y, z)
    return z.numpy()


@pytest.mark.parametrize("order", cuda_emulator.ORDERS)
def test_what_was_written_is_there_after_the_wait(order: str) -> None:
    with cuda_emulator.thread_order(order):
        found = after_another("WAIT; y[i] = 2 * x[(i + 70) % 192];", DEPENDENT)
    assert np.array_equal(found, 2 * (np.roll(X, -70) + 1))


def test_threads_that_do_not_wait_follow_those_that_do() -> None:
    body = "if (threadIdx.x < 32) { WAIT; } __syncthreads(); y[i] = x[i];"
    assert np.array_equal(after_another(body, DEPENDENT), X + 1)


def test_reading_too_early_shows() -> None:
    body = "const float early = x[i]; WAIT; y[i] = early;"
    assert np.isnan(after_another(body, DEPENDENT)).all()
    assert np.array_equal(after_another(body, []), X + 1)


def test_writing_too_early_is_reported() -> None:
    with pytest.raises(Exception, match="is written before griddepcontrol.wait"):
        after_another("y[i] = 1; WAIT;", DEPENDENT)
