"""Bookkeeping on state slots: only the slot that is named changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_runner import DTYPES

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu import slots

SLOT = np.array([2], np.int32)
# Elements of a layer: with and without 16-byte accesses; more than one CTA.
SIZES = [7, 24, 4100]


def state(size: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 4, size)).astype(DTYPES[dtype])


def test_advance() -> None:
    position = np.array([5, 0, 4_000_000, 7], np.int32)
    tokens = np.zeros(9, np.int32)
    one = GpuKernel(slots.advance(batched=False))(tokens, SLOT, position)
    assert one.tolist() == [5, 0, 4_000_009, 7]
    listed = np.array([3, -1, 0, -1], np.int32)
    some = GpuKernel(slots.advance(batched=True))(tokens[:4], listed, position)
    assert some.tolist() == [6, 0, 4_000_000, 8]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_get_and_set(size: int, dtype: str) -> None:
    before = state(size, dtype)
    get, set_ = (GpuKernel(f(3, size, dtype)) for f in (slots.get_slot, slots.set_slot))
    values = get(SLOT, before, np.full_like(before[:, 0], np.nan))
    assert values.tobytes() == before[:, 2].tobytes()
    after = set_(np.array([1], np.int32), values, before)
    before[:, 1] = values
    assert after.tobytes() == before.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "fill"), [("float32", -math.inf), ("float16", 0.0), ("bfloat16", 0.0)]
)
def test_fill(size: int, dtype: str, fill: float) -> None:
    before = state(size, dtype)
    after = GpuKernel(slots.fill_slot(3, size, dtype, fill))(SLOT, before)
    before[:, 2] = fill
    assert after.tobytes() == before.tobytes()


def test_fill_norm() -> None:
    rng = np.random.default_rng(1)
    mean, var = rng.standard_normal((2, 3, 4, 5), dtype=np.float32)
    prior_mean, prior_var = rng.standard_normal((2, 5), dtype=np.float32)
    found = GpuKernel(slots.fill_slot_norm(3, 5))(
        SLOT, prior_mean, prior_var, mean, var, 1, writes=(3, 4)
    )
    mean[1, 2], var[1, 2] = prior_mean, prior_var
    assert found[0].tobytes() == mean.tobytes() and found[1].tobytes() == var.tobytes()
