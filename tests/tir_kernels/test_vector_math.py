"""The polynomial exponential and what is made of it, in units in the last place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_runner import Kernel
from tvm.script import tirx as T

from tir_kernels import vector_math


def elementwise(function: Callable, width: int) -> Kernel:
    """y = function(x) for x of a multiple of ``width`` elements, ``width`` at a time."""

    @T.prim_func(s_tir=True, private=True)
    def apply(x: T.handle, y: T.handle):
        n = T.int32()
        X = T.match_buffer(x, (n,), "float32")
        Y = T.match_buffer(y, (n,), "float32")
        for i in T.serial(n // width):
            for j in T.vectorized(width):
                Y[i * width + j] = function(X[i * width + j])

    return Kernel(apply)


def ulps(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Distance in units in the last place of the true value rounded to float32."""
    spacing = np.spacing(np.abs(wanted).astype(np.float32)).astype(np.float64)
    return np.abs(found.astype(np.float64) - wanted) / spacing


@pytest.mark.parametrize("width", [1, 16])
def test_exp(width: int) -> None:
    exp = elementwise(vector_math.exp, width)
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [
            np.linspace(-87.3, 88.3, 400_000),
            rng.uniform(-1.0, 1.0, 100_000),
            rng.standard_normal(99_968) * 1e-3,
            np.arange(-64, 64) * np.log(2.0) / 2.0,  # where the argument's reduction changes
        ]
    ).astype(np.float32)[: 16 * 37_000]
    y = exp(x, np.full_like(x, np.nan))
    assert ulps(y, np.exp(x.astype(np.float64))).max() <= 2.0


def test_exp_saturates() -> None:
    exp = elementwise(vector_math.exp, 1)
    x = np.array([0.0, -0.0, -1e4, -3e38, -np.inf, 1e4, 3e38], np.float32)
    y = exp(x, np.full_like(x, np.nan))
    assert (y[:2] == 1.0).all()
    assert (y[2:5] >= 0.0).all() and (y[2:5] < 2e-38).all()
    assert np.isfinite(y).all() and (y[5:] > 2e38).all()


def test_silu_and_sigmoid() -> None:
    x = np.concatenate(
        [np.linspace(-80.0, 80.0, 64_000), np.array([-1e30, -200.0, 0.0, 200.0, 1e30] * 16)]
    ).astype(np.float32)
    exact = x.astype(np.float64)
    with np.errstate(over="ignore"):
        wanted = 1.0 / (1.0 + np.exp(-exact))
    sigmoid = elementwise(vector_math.sigmoid, 16)(x, np.full_like(x, np.nan))
    silu = elementwise(vector_math.silu, 16)(x, np.full_like(x, np.nan))
    inside = np.abs(x) <= 80.0
    assert ulps(sigmoid, wanted)[inside].max() <= 4.0
    assert ulps(silu, exact * wanted)[inside & (x != 0.0)].max() <= 5.0
    assert (silu[x == 0.0] == 0.0).all()
    assert (silu[x >= 200.0] == x[x >= 200.0]).all()
    assert (np.abs(silu[x == -200.0]) < 1e-30).all()


def test_reductions_take_every_element() -> None:
    for count in (1, 2, 3, 5, 8, 13, 16):
        values = [float(2**i) for i in range(count)]
        assert vector_math.total(values) == 2.0**count - 1.0
    for count in (1, 2, 3, 5, 8, 13):
        for place in range(count):
            lanes = [T.float32(1.0 if i == place else 0.0) for i in range(count)]
            assert float(vector_math.largest(lanes)) == 1.0
