"""The complex EMA against the float64 PyTorch operation."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_runner import assert_near, poisoned
from test_norm_kernels import BETAS, EPS, Ema, NormState, normal

from gpu.gpu_runner import GpuKernel
from tir_kernels.gpu import cema, mega_step

from .test_norms import ROUNDING, rounded, unwritten


@pytest.mark.parametrize(
    ("dim", "modes", "dtype"),
    [(32, 16, "bfloat16"), (24, 8, "float16"), (13, 5, "float32"), (8, 24, "bfloat16")],
)
def test_prefill(dim: int, modes: int, dtype: str) -> None:
    rng = np.random.default_rng(dim)
    ema = Ema(rng, dim, modes)
    kernel = GpuKernel(cema.cema(dim, modes, 2, dtype))
    for m, layer, slot in ((1, 0, 2), (2, 1, 0), (48, 0, 1), (131, 1, 1)):
        x = rounded(rng, dtype, m, dim)
        y, h = kernel(
            x, ema.p, ema.q, ema.gamma, np.array([slot], np.int32), ema.h, layer,
            unwritten(dtype, m, dim), writes=(-1, 5),
        )  # fmt: skip
        wanted, wanted_h = ema.reference(x.astype(np.float32), layer, slot)
        assert_near(y, wanted, 2e-6 + ROUNDING[dtype])
        assert_near(h[layer, slot], wanted_h, 2e-6)
        h[layer, slot] = ema.h[layer, slot]
        assert (h == ema.h).all(), "another slot was changed"


def test_prefill_longer_than_shared_memory() -> None:
    rng = np.random.default_rng(2)
    ema = Ema(rng, 4, 4)
    x = normal(rng, 2100, 4)
    y, h = GpuKernel(cema.cema(4, 4, 2, "float32"))(
        x, ema.p, ema.q, ema.gamma, np.array([1], np.int32), ema.h, 1, poisoned(2100, 4),
        writes=(-1, 5),
    )  # fmt: skip
    wanted, wanted_h = ema.reference(x, 1, 1)
    assert_near(y, wanted, 2e-6)
    assert_near(h[1, 1], wanted_h, 2e-6)


@pytest.mark.parametrize(
    ("dim", "groups", "modes", "dtype"),
    [
        (256, 4, 16, "bfloat16"),
        (144, 3, 8, "float16"),
        (130, 1, 32, "float32"),
        (60, 4, 7, "bfloat16"),
    ],
)
def test_step(dim: int, groups: int, modes: int, dtype: str) -> None:
    """One step of the norm and the EMA; a row without a slot changes no state."""
    rng = np.random.default_rng(dim)
    norm, ema = NormState(rng, dim, groups), Ema(rng, dim, modes)
    for slots in ([2], [0, -1], [1, 2, 0, -1]):
        rows = len(slots)
        kernel = GpuKernel(
            mega_step.timenorm_cema_step(dim, groups, modes, BETAS, EPS, 3, 2, rows, dtype)
        )
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
