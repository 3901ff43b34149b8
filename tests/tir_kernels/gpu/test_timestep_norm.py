"""Timestep decay norm against the float64 PyTorch operation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from kernel_runner import assert_near, poisoned
from test_norm_kernels import BETAS, EPS, NormState, exact, normal

from gecko_mlc.reference import ops
from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import LARGE, LEAST
from tir_kernels.gpu import mega_step, timestep_norm
from tir_kernels.gpu.unit import SM80, SM90A, GpuUnit

from .test_norms import ROUNDING, rounded, unwritten

# Groups of half a warp's vectors, of many of them, of odd sizes and numbers.
GROUPINGS = [
    (512, 8, "bfloat16", SM80),
    (2100, 3, "float16", SM90A),
    (130, 13, "float32", SM80),
    (130, 13, "float32", LEAST),
    (512, 8, "float16", LEAST),
    (2100, 3, "bfloat16", LARGE),
]


class Prefill:
    """Both kernels, with or without a residual."""

    def __init__(
        self,
        dim: int,
        groups: int,
        norms: int,
        dtype: str,
        unit: GpuUnit,
        delta: bool,
        rescale: bool = False,
    ) -> None:
        self.dtype, self.groups = dtype, groups
        self.stats = GpuKernel(
            timestep_norm.stats(dim, groups, BETAS, norms, unit, dtype if delta else None, rescale)
        )
        self.apply = GpuKernel(timestep_norm.apply(dim, groups, BETAS, EPS, norms, dtype, unit))

    def __call__(self, x: np.ndarray, residual: list[np.ndarray], *given: Any) -> list[np.ndarray]:
        """x', y and the new averages; given are the arguments from weight to layer."""
        *parameters, slots, position, mean, var, layer = given
        m = len(x)
        moments, added = poisoned(2, self.groups, m), poisoned(2, self.groups, -(-m // 32))
        fresh = [poisoned(*x.shape)] if residual else []
        written = self.stats(
            x, *residual, slots, mean, var, layer, *fresh, moments, added,
            writes=tuple(range(-2 - len(fresh), 0)),
        )  # fmt: skip
        x = written[0] if residual else x
        y, mean, var = self.apply(
            x, *written[-2:], *parameters, slots, position, mean, var, layer,
            unwritten(self.dtype, *x.shape), writes=(-1, 8, 9),
        )  # fmt: skip
        return [x, y, mean, var]


@pytest.mark.parametrize(("dim", "groups", "dtype", "unit"), GROUPINGS)
def test_prefill(dim: int, groups: int, dtype: str, unit: GpuUnit) -> None:
    rng = np.random.default_rng(dim)
    state = NormState(rng, dim, groups)
    prefill = Prefill(dim, groups, 3, dtype, unit, delta=False)
    for m, layer, slot in ((1, 0, 0), (31, 2, 2), (33, 0, 3), (200, 1, 1)):
        x = normal(rng, m, dim) + 1.0
        _, y, mean, var = prefill(
            x, [], *state.parameters(), np.array([slot], np.int32), state.position, state.mean,
            state.var, layer,
        )  # fmt: skip
        wanted, wanted_mean, wanted_var = state.reference(x, layer, slot)
        assert_near(y, wanted, 4e-6 + ROUNDING[dtype])
        assert_near(mean[layer, slot], wanted_mean, 2e-6)
        assert_near(var[layer, slot], wanted_var, 2e-6)
        mean[layer, slot], var[layer, slot] = state.mean[layer, slot], state.var[layer, slot]
        assert (mean == state.mean).all() and (var == state.var).all(), "another slot was changed"


def test_prefill_of_more_blocks_than_a_warp_has_lanes() -> None:
    rng = np.random.default_rng(1)
    state = NormState(rng, 8, 2)
    prefill = Prefill(8, 2, 3, "float32", SM80, delta=False)
    x = normal(rng, 1100, 8) + 1.0
    _, y, mean, var = prefill(
        x, [], *state.parameters(), np.array([1], np.int32), state.position, state.mean,
        state.var, 1,
    )  # fmt: skip
    wanted, wanted_mean, wanted_var = state.reference(x, 1, 1)
    assert_near(y, wanted, 4e-6)
    assert_near(mean[1, 1], wanted_mean, 2e-6)
    assert_near(var[1, 1], wanted_var, 2e-6)


@pytest.mark.parametrize(
    ("dim", "groups", "dtype", "unit", "rescale"),
    [
        (512, 8, "bfloat16", SM80, False),
        (130, 13, "float32", LEAST, True),
        (60, 4, "float16", LARGE, True),
    ],
)
def test_residual(dim: int, groups: int, dtype: str, unit: GpuUnit, rescale: bool) -> None:
    rng = np.random.default_rng(dim)
    state = NormState(rng, dim, groups)
    prefill = Prefill(dim, groups, 3, dtype, unit, delta=True, rescale=rescale)
    x, delta, alpha = normal(rng, 40, dim), rounded(rng, dtype, 40, dim), normal(rng, dim)
    x_new, y, mean, var = prefill(
        x, [delta, alpha] if rescale else [delta], *state.parameters(), np.array([2], np.int32),
        state.position, state.mean, state.var, 1,
    )  # fmt: skip
    scaled = delta.astype(np.float64) * (alpha if rescale else 1.0)
    assert_near(x_new, x + scaled, 3e-7)
    wanted, wanted_mean, wanted_var = state.reference(x_new, 1, 2)
    assert_near(y, wanted, 4e-6 + ROUNDING[dtype])
    assert_near(mean[1, 2], wanted_mean, 2e-6)
    assert_near(var[1, 2], wanted_var, 2e-6)


@pytest.mark.parametrize(("dim", "groups", "dtype", "unit"), GROUPINGS)
def test_step(dim: int, groups: int, dtype: str, unit: GpuUnit) -> None:
    """One step of several sequences; a row without a slot changes no state."""
    rng = np.random.default_rng(dim)
    state = NormState(rng, dim, groups)
    for slots in ([2], [3, -1], [1, 3, 0, 2]):
        step = mega_step.timenorm_step(dim, groups, BETAS, EPS, 3, len(slots), dtype, unit)
        kernel = GpuKernel(step, "sm_90a" if unit.dependent_launch else "sm_80")
        x = normal(rng, len(slots), dim) - 0.5
        y, mean, var = kernel(
            x, *state.parameters(), np.array(slots, np.int32), state.position, state.mean,
            state.var, 1, unwritten(dtype, len(slots), dim), writes=(-1, 6, 7),
        )  # fmt: skip
        for row, slot in enumerate(slots):
            if slot < 0:
                continue
            wanted, wanted_mean, wanted_var = state.reference(x[row : row + 1], 1, slot)
            assert_near(y[row], wanted[0], 4e-6 + ROUNDING[dtype])
            assert_near(mean[1, slot], wanted_mean, 2e-6)
            assert_near(var[1, slot], wanted_var, 2e-6)
            mean[1, slot], var[1, slot] = state.mean[1, slot], state.var[1, slot]
        assert (mean == state.mean).all() and (var == state.var).all(), "another slot was changed"


def test_bias_correction() -> None:
    """From averages of a constant input, bias-corrected, comes that constant: y is exactly known.

    A correction taken from a power in float32 is off by 1.7e-4 at count 1.
    """
    prefill = Prefill(4, 2, 1, "float32", SM80, delta=False)
    step = GpuKernel(mega_step.timenorm_step(4, 2, BETAS, EPS, 1, 1, "float32", SM80))
    x = np.array([[1.0, 5.0, -2.0, 4.0]], np.float32)  # groups with mean 3, 1 and variance 4, 9
    wanted = np.array([-2.0, 2.0, -3.0, 3.0]) / np.sqrt(np.array([4.0, 4.0, 9.0, 9.0]) + EPS)
    for count in (1, 2, 10, 10_000, 4_000_000):
        corrections = [-math.expm1(count * math.log(beta)) for beta in BETAS]
        before = [-math.expm1((count - 1) * math.log(beta)) for beta in BETAS]
        mean = (np.array([[[3.0, 1.0]]]) * before[0]).astype(np.float32)
        var = (np.array([[[4.0, 9.0]]]) * before[1]).astype(np.float32)
        given = (
            np.ones(4, np.float32), np.zeros(4, np.float32), np.array([0], np.int32),
            np.array([0], np.int32), np.array([count - 1], np.int32), mean, var, 0,
        )  # fmt: skip
        for y, new_mean, new_var in (
            prefill(x, [], *given)[1:],
            step(x, *given, poisoned(1, 4), writes=(-1, 6, 7)),
        ):
            np.testing.assert_allclose(y[0], wanted, rtol=1e-6)
            wanted_mean, wanted_var = np.outer(corrections, [1, 1]) * [[3, 1], [4, 9]]
            np.testing.assert_allclose(new_mean[0, 0], wanted_mean, rtol=1e-6)
            np.testing.assert_allclose(new_var[0, 0], wanted_var, rtol=1e-6)


def test_averages_hold_over_many_calls() -> None:
    """Averages that have settled stay the float64 ones, where an error in the decay is largest.

    With float32(0.9999) for beta the variance would be off by 3e-5 after these steps.
    """
    rng = np.random.default_rng(5)
    prefill = Prefill(8, 2, 1, "float32", SM80, delta=False)
    weight, bias = np.ones(8, np.float32), np.zeros(8, np.float32)
    start = 1_000_000
    mean, var = np.full((1, 1, 2), 2.0, np.float32), np.full((1, 1, 2), 1.0, np.float32)
    wanted_mean, wanted_var = exact(mean[0]), exact(var[0])
    for _ in range(60):
        x = (rng.standard_normal((33, 8)) + 2.0).astype(np.float32)
        _, y, mean, var = prefill(
            x, [], weight, bias, np.array([0], np.int32), np.array([0], np.int32),
            np.array([start], np.int32), mean, var, 0,
        )  # fmt: skip
        wanted, wanted_mean, wanted_var = ops.timestep_decay_norm(
            exact(x)[None], wanted_mean, wanted_var, start, exact(weight), exact(bias), *BETAS, EPS
        )
        start += 33
    np.testing.assert_allclose(mean[0, 0], wanted_mean[0].numpy(), rtol=3e-6)
    np.testing.assert_allclose(var[0, 0], wanted_var[0].numpy(), rtol=3e-6)
    assert_near(y, wanted[0].numpy(), 3e-6)
