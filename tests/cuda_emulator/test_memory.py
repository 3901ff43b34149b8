"""Memory of the emulated device: what it holds at first, and accesses out of bounds."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

import cuda_emulator
from cuda_emulator.block_program import run_block

X = np.arange(64, dtype=np.uint32)


def test_device() -> None:
    cuda_emulator.install()
    device = tvm.cuda(0)
    assert device.exist
    assert device.warp_size == 32
    assert device.max_shared_memory_per_block == 48 << 10
    cuda_emulator.set_capability(9, 0)
    assert device.compute_version == "9.0"
    cuda_emulator.set_capability(8, 0)
    assert device.compute_version == "8.0"


def test_fresh_memory_is_nan() -> None:
    cuda_emulator.install()
    for dtype in ("float32", "float16"):
        assert np.isnan(tvm.runtime.empty((1000,), dtype, tvm.cuda(0)).numpy()).all()
    found = run_block("y[threadIdx.x] = ((uint32_t*)shared)[threadIdx.x];", X, 64, 64)
    assert np.isnan(found.view(np.float32)).all()


@pytest.mark.parametrize(
    "body, message",
    [
        ("y[threadIdx.x + 1] = 0;", "illegal address: byte 256 of the 256 bytes at"),
        ("y[threadIdx.x] = *(volatile uint32_t*)nullptr;", "(nil) is not device memory"),
        ("volatile int zero = 0; y[threadIdx.x] = int(x[0]) / zero;", "integer division by zero"),
        ("int a[4] = {}; a[x[threadIdx.x]] = 1; y[threadIdx.x] = a[0];", "index out of bounds"),
    ],
)
def test_illegal_accesses_are_reported(body: str, message: str) -> None:
    with pytest.raises(Exception, match="launch failed") as error:
        run_block(body, X, 64, 64)
    assert message in str(error.value)
    # The device still works.
    assert (run_block("y[threadIdx.x] = 1;", X, 64, 64) == 1).all()


def test_writing_just_past_the_end_is_reported() -> None:
    """Where the next page does not begin yet."""
    with pytest.raises(Exception, match="wrote past the end of the 16 bytes at"):
        run_block("y[threadIdx.x] = 0;", X, 4, 5)
