"""Bookkeeping on state slots: only the slot that is named changes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from kernel_runner import DTYPES, Kernel

from tir_kernels import slots

SLOT = np.array([2], np.int32)


def state(dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 4, 7)).astype(DTYPES[dtype])


def test_advance() -> None:
    position = np.array([5, 0, 4_000_000, 7], np.int32)
    tokens = np.zeros(9, np.int32)
    one = Kernel(slots.advance(batched=False))(tokens, SLOT, position)
    assert one.tolist() == [5, 0, 4_000_009, 7]
    some = Kernel(slots.advance(batched=True))(tokens[:2], np.array([3, 0], np.int32), position)
    assert some.tolist() == [6, 0, 4_000_000, 8]


@pytest.mark.parametrize("dtype", DTYPES)
def test_get_and_set(dtype: str) -> None:
    before = state(dtype)
    values = Kernel(slots.get_slot(3, 7, dtype))(SLOT, before, np.full_like(before[:, 0], np.nan))
    assert values.tobytes() == before[:, 2].tobytes()
    other = np.array([1], np.int32)
    after = Kernel(slots.set_slot(3, 7, dtype))(other, values, before)
    before[:, 1] = values
    assert after.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("dtype", "fill"), [("float32", -math.inf), ("float16", 0.0), ("bfloat16", 0.0)]
)
def test_fill(dtype: str, fill: float) -> None:
    before = state(dtype)
    after = Kernel(slots.fill_slot(3, 7, dtype, fill))(SLOT, before)
    before[:, 2] = fill
    assert after.tobytes() == before.tobytes()


def test_fill_norm() -> None:
    rng = np.random.default_rng(1)
    mean, var = rng.standard_normal((2, 3, 4, 5), dtype=np.float32)
    prior_mean, prior_var = rng.standard_normal((2, 5), dtype=np.float32)
    found = Kernel(slots.fill_slot_norm(3, 5))(
        SLOT, prior_mean, prior_var, mean, var, 1, writes=(3, 4)
    )
    mean[1, 2], var[1, 2] = prior_mean, prior_var
    assert found[0].tobytes() == mean.tobytes() and found[1].tobytes() == var.tobytes()
