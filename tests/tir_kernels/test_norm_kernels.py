"""Norms, timestep decay norm, CEMA and the embedding, against the float64 PyTorch operations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kernel_runner import DTYPES, Kernel, assert_near, poisoned

from gecko_mlc.reference import ops
from tir_kernels import cema, embedding, norms, timestep_norm
from tir_kernels.vector_unit import AVX2, AVX512, NEON, PORTABLE, VectorUnit

EPS = 1e-5
BETAS = (0.999, 0.9999)


def exact(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).double()


def exact_complex(x: np.ndarray) -> torch.Tensor:
    return torch.view_as_complex(exact(x).contiguous())


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


# Groups of one vector and more, of odd sizes, and of sizes that share a factor with the lanes only.
GROUPINGS = [(512, 4, AVX512), (130, 13, AVX512), (60, 4, AVX2), (21, 3, NEON), (7, 1, PORTABLE)]


@pytest.mark.parametrize(("dim", "groups", "unit"), GROUPINGS)
def test_rms_and_layer_norm(dim: int, groups: int, unit: VectorUnit) -> None:
    rng = np.random.default_rng(dim)
    rms = Kernel(norms.rms_norm(dim, groups, EPS, unit))
    layer = Kernel(norms.layer_norm(dim, groups, EPS, unit))
    weight, bias = normal(rng, dim), normal(rng, dim)
    for m in (1, 2, 3, 7, 8, 13):
        x = normal(rng, m, dim)
        wanted = ops.group_rms_norm(exact(x), exact(weight), groups, EPS)
        assert_near(rms(x, weight, poisoned(m, dim)), wanted.numpy(), 2e-6)
        x[0] += 100.0  # a mean that must not cost digits of the variance
        wanted = ops.group_layer_norm(exact(x), exact(weight), exact(bias), groups, EPS)
        assert_near(layer(x, weight, bias, poisoned(m, dim)), wanted.numpy(), 4e-5)


def test_norms_of_a_constant_row() -> None:
    weight, bias = np.ones(12, np.float32), np.zeros(12, np.float32)
    zeros = np.zeros((2, 12), np.float32)
    assert (Kernel(norms.rms_norm(12, 2, EPS, AVX2))(zeros, weight, poisoned(2, 12)) == 0).all()
    layer = Kernel(norms.layer_norm(12, 2, EPS, AVX2))
    assert (layer(zeros + 5.0, weight, bias, poisoned(2, 12)) == 0).all()


class NormState:
    """Averages [layers+1, slots, G] and positions of some sequences, and TDN's parameters."""

    def __init__(self, rng: np.random.Generator, dim: int, groups: int) -> None:
        self.weight, self.bias = normal(rng, dim), normal(rng, dim)
        self.prior_count = np.array([3], np.int32)
        self.position = np.array([0, 7, 1000, 4_000_000], np.int32)
        counts = (self.prior_count + self.position).astype(np.float64)
        # Averages as they are after that many steps: their bias correction gives about 1.
        correction = [1.0 - np.power(beta, counts)[:, None] for beta in BETAS]
        shape = (3, 4, groups)
        self.mean = (normal(rng, *shape) * correction[0]).astype(np.float32)
        self.var = (rng.uniform(0.5, 2.0, shape) * correction[1]).astype(np.float32)

    def reference(
        self, x: np.ndarray, layer: int, slot: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y [m, D] and the averages [G] after m steps."""
        y, mean, var = ops.timestep_decay_norm(
            exact(x)[None],
            exact(self.mean[layer, slot])[None],
            exact(self.var[layer, slot])[None],
            int(self.prior_count[0] + self.position[slot]),
            exact(self.weight),
            exact(self.bias),
            *BETAS,
            EPS,
        )
        return y[0].numpy(), mean[0].numpy(), var[0].numpy()

    def parameters(self) -> tuple[np.ndarray, ...]:
        return self.weight, self.bias, self.prior_count


@pytest.mark.parametrize(("dim", "groups", "unit"), GROUPINGS)
def test_timestep_norm(dim: int, groups: int, unit: VectorUnit) -> None:
    rng = np.random.default_rng(dim)
    state = NormState(rng, dim, groups)
    prefill = Kernel(timestep_norm.timestep_norm_prefill(dim, groups, BETAS, EPS, 48, 3, unit))
    decode = Kernel(timestep_norm.timestep_norm_decode(dim, groups, BETAS, EPS, 3, unit))

    for m, layer, slot in ((1, 0, 0), (2, 1, 1), (13, 2, 2), (47, 0, 3), (48, 2, 0)):
        x = normal(rng, m, dim) + 1.0
        y, mean, var = prefill(
            x, *state.parameters(), np.array([slot], np.int32), state.position, state.mean,
            state.var, layer, poisoned(m, dim), writes=(-1, 6, 7),
        )  # fmt: skip
        wanted, wanted_mean, wanted_var = state.reference(x, layer, slot)
        assert_near(y, wanted, 4e-6)
        assert_near(mean[layer, slot], wanted_mean, 2e-6)
        assert_near(var[layer, slot], wanted_var, 2e-6)
        mean[layer, slot], var[layer, slot] = state.mean[layer, slot], state.var[layer, slot]
        assert (mean == state.mean).all() and (var == state.var).all(), "another slot was changed"

    for slots in ([2], [3, 0], [1, 3, 0, 2]):
        x = normal(rng, len(slots), dim) - 0.5
        y, mean, var = decode(
            x, *state.parameters(), np.array(slots, np.int32), state.position, state.mean,
            state.var, 1, poisoned(len(slots), dim), writes=(-1, 6, 7),
        )  # fmt: skip
        for row, slot in enumerate(slots):
            wanted, wanted_mean, wanted_var = state.reference(x[row : row + 1], 1, slot)
            assert_near(y[row], wanted[0], 4e-6)
            assert_near(mean[1, slot], wanted_mean, 2e-6)
            assert_near(var[1, slot], wanted_var, 2e-6)
            mean[1, slot], var[1, slot] = state.mean[1, slot], state.var[1, slot]
        assert (mean == state.mean).all() and (var == state.var).all(), "another slot was changed"


@pytest.mark.parametrize("count", [1, 2, 10, 10_000, 4_000_000])
def test_bias_correction(count: int) -> None:
    """From averages of a constant input, bias-corrected, comes that constant: y is exactly known.

    A correction taken in float32 is off by 1.7e-4 at count 1.
    """
    x = np.array([[1.0, 5.0, -2.0, 4.0]], np.float32)  # groups with mean 3, 1 and variance 4, 9
    corrections = [-math.expm1(count * math.log(beta)) for beta in BETAS]
    before = [-math.expm1((count - 1) * math.log(beta)) for beta in BETAS]
    mean = (np.array([[[3.0, 1.0]]]) * before[0]).astype(np.float32)
    var = (np.array([[[4.0, 9.0]]]) * before[1]).astype(np.float32)
    wanted = np.array([-2.0, 2.0, -3.0, 3.0]) / np.sqrt(np.array([4.0, 4.0, 9.0, 9.0]) + EPS)
    for kernel in (
        timestep_norm.timestep_norm_prefill(4, 2, BETAS, EPS, 8, 1, PORTABLE),
        timestep_norm.timestep_norm_decode(4, 2, BETAS, EPS, 1, PORTABLE),
    ):
        y, new_mean, new_var = Kernel(kernel)(
            x, np.ones(4, np.float32), np.zeros(4, np.float32), np.array([0], np.int32),
            np.array([0], np.int32), np.array([count - 1], np.int32), mean, var, 0,
            poisoned(1, 4), writes=(-1, 6, 7),
        )  # fmt: skip
        np.testing.assert_allclose(y[0], wanted, rtol=1e-6)
        np.testing.assert_allclose(new_mean[0, 0], [3 * corrections[0], corrections[0]], rtol=1e-6)
        np.testing.assert_allclose(
            new_var[0, 0], [4 * corrections[1], 9 * corrections[1]], rtol=1e-6
        )


def test_averages_hold_over_many_steps() -> None:
    """After 20 000 steps the averages are the float64 ones: beta's own rounding would show.

    float32(0.9999) stands for an average that settles 1.7e-4 too low. What remains is the random
    rounding of the stored average, of the order of sqrt(steps) units in the last place.
    """
    rng = np.random.default_rng(5)
    kernel = Kernel(timestep_norm.timestep_norm_prefill(16, 2, BETAS, EPS, 1000, 1, PORTABLE))
    weight, bias = np.ones(16, np.float32), np.zeros(16, np.float32)
    mean, var = np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2), np.float32)
    wanted_mean = wanted_var = torch.zeros(1, 2, dtype=torch.float64)
    for start in range(0, 20_000, 1000):
        x = (rng.standard_normal((1000, 16)) + 2.0).astype(np.float32)
        y, mean, var = kernel(
            x, weight, bias, np.array([0], np.int32), np.array([0], np.int32),
            np.array([start], np.int32), mean, var, 0, poisoned(1000, 16), writes=(-1, 6, 7),
        )  # fmt: skip
        wanted, wanted_mean, wanted_var = ops.timestep_decay_norm(
            exact(x)[None], wanted_mean, wanted_var, start, exact(weight), exact(bias), *BETAS, EPS
        )
    np.testing.assert_allclose(mean[0, 0], wanted_mean[0].numpy(), rtol=1e-5)
    np.testing.assert_allclose(var[0, 0], wanted_var[0].numpy(), rtol=1e-5)
    assert_near(y, wanted[0].numpy(), 1e-5)


class Ema:
    """CEMA's folded parameters and a state [layers, slots, D, N, 2]."""

    def __init__(self, rng: np.random.Generator, dim: int, modes: int) -> None:
        alpha, delta = normal(rng, dim, modes), normal(rng, dim, modes)
        theta, gamma = normal(rng, dim), normal(rng, dim, modes, 2)
        parameters = exact(alpha), exact(delta), exact(theta), exact(gamma)
        p, q, _ = ops.cema_coefficients(*parameters, dtype=torch.float32)
        self.p, self.q = p.numpy(), torch.view_as_real(q).contiguous().numpy()
        self.gamma = gamma
        self.h = normal(rng, 2, 3, dim, modes, 2)

    def reference(self, x: np.ndarray, layer: int, slot: int) -> tuple[np.ndarray, np.ndarray]:
        y, h = ops.complex_ema(
            exact(x)[None],
            exact_complex(self.h[layer, slot])[None],
            exact(self.p),
            exact_complex(self.q),
            exact_complex(self.gamma),
        )
        return y[0].numpy(), torch.view_as_real(h[0]).numpy()


@pytest.mark.parametrize(
    ("dim", "modes", "unit"),
    [(64, 16, AVX512), (130, 8, AVX512), (60, 5, AVX2), (21, 3, NEON), (36, 1, PORTABLE)],
)
def test_cema(dim: int, modes: int, unit: VectorUnit) -> None:
    rng = np.random.default_rng(dim)
    ema = Ema(rng, dim, modes)
    prefill = Kernel(cema.cema_prefill(dim, modes, 2, unit))
    decode = Kernel(cema.cema_decode(dim, modes, 2, unit))

    for m, layer, slot in ((1, 0, 2), (2, 1, 0), (7, 1, 2), (48, 0, 1), (131, 1, 1)):
        x = normal(rng, m, dim)
        y, h = prefill(
            x, ema.p, ema.q, ema.gamma, np.array([slot], np.int32), ema.h, layer,
            poisoned(m, dim), writes=(-1, 5),
        )  # fmt: skip
        wanted, wanted_h = ema.reference(x, layer, slot)
        assert_near(y, wanted, 2e-6)
        assert_near(h[layer, slot], wanted_h, 2e-6)
        h[layer, slot] = ema.h[layer, slot]
        assert (h == ema.h).all(), "another slot was changed"

    for slots in ([1], [2, 0], [1, 0, 2]):
        x = normal(rng, len(slots), dim)
        y, h = decode(
            x, ema.p, ema.q, ema.gamma, np.array(slots, np.int32), ema.h, 1,
            poisoned(len(slots), dim), writes=(-1, 5),
        )  # fmt: skip
        for row, slot in enumerate(slots):
            wanted, wanted_h = ema.reference(x[row : row + 1], 1, slot)
            assert_near(y[row], wanted[0], 2e-6)
            assert_near(h[1, slot], wanted_h, 2e-6)
            h[1, slot] = ema.h[1, slot]
        assert (h == ema.h).all(), "another slot was changed"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "scale"), [(36, 6.0), (32, 1.0)])
def test_embedding(dtype: str, dim: int, scale: float) -> None:
    table = np.random.default_rng(0).standard_normal((19, dim)).astype(DTYPES[dtype])
    kernel = Kernel(embedding.embed(19, dim, scale, dtype, AVX2))
    for tokens in ([18], [0, 18, 7, 7, 3]):
        found = kernel(np.array(tokens, np.int32), table, poisoned(len(tokens), dim))
        assert (found == table[tokens].astype(np.float32) * np.float32(scale)).all()


def test_last_row() -> None:
    x = normal(np.random.default_rng(0), 5, 13)
    kernel = Kernel(embedding.last_row(13))
    for m in (1, 5):
        assert (kernel(x[:m].copy(), poisoned(1, 13)) == x[m - 1]).all()
