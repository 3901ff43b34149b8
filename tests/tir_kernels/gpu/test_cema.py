"""The complex EMA against the float64 PyTorch operation."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import assert_near, poisoned
from test_norm_kernels import BETAS, EPS, Ema, NormState, normal

from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import LARGE, LEAST
from tir_kernels.gpu import cema, mega_step
from tir_kernels.gpu.cema_products import products
from tir_kernels.gpu.cema_recurrence import recurrence
from tir_kernels.gpu.unit import SM80, SM90A, GpuUnit

from .test_norms import ROUNDING, rounded, unwritten


def check_prefill(kernel, dim: int, modes: int, dtype: str, lengths, tolerance: float) -> None:
    """y to ``tolerance`` beside its own rounding, the state h to ``tolerance``."""
    rng = np.random.default_rng(dim)
    ema = Ema(rng, dim, modes)
    run = GpuKernel(kernel)
    for number, m in enumerate(lengths):
        layer, slot = number % 2, number % 3
        x = rounded(rng, dtype, m, dim)
        y, h = run(
            x, ema.p, ema.q, ema.gamma, np.array([slot], np.int32), ema.h, layer,
            unwritten(dtype, m, dim), writes=(-1, 5),
        )  # fmt: skip
        wanted, wanted_h = ema.reference(x.astype(np.float32), layer, slot)
        assert_near(y, wanted, tolerance + ROUNDING[dtype])
        assert_near(h[layer, slot], wanted_h, tolerance)
        h[layer, slot] = ema.h[layer, slot]
        assert (h == ema.h).all(), "another slot was changed"


@pytest.mark.parametrize(
    ("dim", "modes", "dtype", "unit"),
    [
        (32, 16, "bfloat16", LARGE),
        (13, 5, "float32", SM80),
        (8, 24, "float16", LARGE),
        (20, 16, "float32", LEAST),
        (6, 130, "bfloat16", LEAST),
    ],
)
def test_recurrence(dim: int, modes: int, dtype: str, unit: GpuUnit) -> None:
    kernel = recurrence(dim, modes, 2, dtype, unit)
    check_prefill(kernel, dim, modes, dtype, (1, 2, 48, 131), 2e-6)


@pytest.mark.parametrize("unit", [SM80, LEAST], ids=["sm_80", "least"])
def test_long_recurrence(unit: GpuUnit) -> None:
    check_prefill(recurrence(4, 4, 2, "float32", unit), 4, 4, "float32", (2100,), 2e-6)


@pytest.mark.parametrize(
    ("dim", "modes", "dtype"), [(16, 16, "bfloat16"), (24, 8, "float16"), (40, 5, "bfloat16")]
)
def test_products(dim: int, modes: int, dtype: str) -> None:
    """Lengths inside a block of steps, of whole blocks, and of one and more segments."""
    kernel = products(dim, modes, 2, dtype)
    check_prefill(kernel, dim, modes, dtype, (1, 32, 45, 512, 700), 1e-5)


def test_the_shape_decides() -> None:
    assert cema.cema(32, 16, 1, "bfloat16", SM80) is products(32, 16, 1, "bfloat16")
    for dim, modes, dtype, unit in (
        (32, 16, "float32", SM80),
        (32, 17, "bfloat16", SM80),
        (36, 16, "float16", SM80),
        (32, 16, "bfloat16", LARGE),
    ):
        assert cema.cema(dim, modes, 1, dtype, unit) is recurrence(dim, modes, 1, dtype, unit)


@pytest.mark.parametrize(
    ("dim", "groups", "modes", "dtype", "unit"),
    [
        (256, 4, 16, "bfloat16", SM80),
        (144, 3, 8, "float16", SM90A),
        (130, 1, 32, "float32", SM80),
        (60, 4, 7, "bfloat16", SM80),
        (130, 1, 32, "float32", LEAST),
        (144, 3, 8, "float16", LEAST),
        (256, 4, 16, "bfloat16", LARGE),
    ],
)
def test_step(dim: int, groups: int, modes: int, dtype: str, unit: GpuUnit) -> None:
    """One step of the norm and the EMA; a row without a slot changes no state."""
    rng = np.random.default_rng(dim)
    norm, ema = NormState(rng, dim, groups), Ema(rng, dim, modes)
    for slots in ([2], [0, -1], [1, 2, 0, -1]):
        rows = len(slots)
        step = mega_step.timenorm_cema_step(dim, groups, modes, BETAS, EPS, 3, 2, rows, dtype, unit)
        kernel = GpuKernel(step, "sm_90a" if unit.dependent_launch else "sm_80")
        x = normal(rng, rows, dim) - 0.5
        mean, var, h, o, y = kernel(
            x, *norm.parameters(), ema.p, ema.q, ema.gamma, np.array(slots, np.int32),
            norm.position[:3].copy(), norm.mean[:, :3].copy(), norm.var[:, :3].copy(), ema.h, 2, 1,
            unwritten(dtype, rows, dim), poisoned(rows, dim), writes=(9, 10, 11, -2, -1),
        )  # fmt: skip
        for row, slot in enumerate(slots):
            if slot < 0:
                continue
            wanted, wanted_mean, wanted_var = norm.reference(x[row : row + 1], 2, slot)
            assert_near(o[row], wanted[0], 4e-6 + ROUNDING[dtype])
            assert_near(mean[2, slot], wanted_mean, 2e-6)
            assert_near(var[2, slot], wanted_var, 2e-6)
            wanted, wanted_h = ema.reference(o[row : row + 1].astype(np.float32), 1, slot)
            assert_near(y[row], wanted[0], 2e-6)
            assert_near(h[1, slot], wanted_h, 2e-6)
            mean[2, slot], var[2, slot] = norm.mean[2, slot], norm.var[2, slot]
            h[1, slot] = ema.h[1, slot]
        assert (mean == norm.mean[:, :3]).all() and (var == norm.var[:, :3]).all()
        assert (h == ema.h).all(), "another slot was changed"
