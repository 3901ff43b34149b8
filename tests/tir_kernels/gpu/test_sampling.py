"""The token that the device chooses, against the host's sampler and against the distribution."""

from __future__ import annotations

import numpy as np
import pytest

from gecko_mlc.runtime.sampling import keep_largest, nucleus_size
from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import LEAST
from tir_kernels.gpu.sampling import sample
from tir_kernels.gpu.unit import SM80

ROWS = 4


@pytest.fixture(
    scope="module",
    # More entries than a thread's registers take, in the last.
    params=[(5, SM80), (257, SM80), (2000, SM80), (9000, LEAST)],
    ids=["few", "odd", "many", "more than registers"],
)
def kernel(request: pytest.FixtureRequest) -> tuple[GpuKernel, int]:
    vocab, unit = request.param
    return GpuKernel(sample(ROWS, vocab, unit)), vocab


def chosen(kernel: GpuKernel, logits: np.ndarray, sampling: list) -> np.ndarray:
    tokens = np.full(ROWS, -7, np.int32)
    return kernel(logits, np.array(sampling, np.float32), tokens)


def kept_weights(logits: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Unnormalised weights [V] after the filter, as ``Sampler`` makes them."""
    scores = logits.astype(np.float64)
    weights = np.exp((scores - scores.max()) / np.float32(temperature))
    if top_p < 1.0:
        weights = keep_largest(weights, nucleus_size(weights, top_p))
    return weights


def test_greedy_takes_the_first_of_equals(kernel: tuple[GpuKernel, int]) -> None:
    compiled, vocab = kernel
    logits = np.random.default_rng(vocab).standard_normal((ROWS, vocab), dtype=np.float32)
    logits[0, vocab // 3], logits[0, vocab - 1] = 9.0, 9.0
    logits[1, 0] = 9.0
    logits[2, vocab - 1] = 9.0
    logits[3] = -np.inf
    logits[3, vocab // 2] = -50.0
    tokens = chosen(compiled, logits, [(0.0, top_p, 0.5) for top_p in (1.0, 0.1, 1.0, 1.0)])
    assert tokens.tolist() == [vocab // 3, 0, vocab - 1, vocab // 2]


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (2.0, 0.5), (1.0, 1e-6), (1e-4, 0.99)]
)
def test_draw(kernel: tuple[GpuKernel, int], temperature: float, top_p: float) -> None:
    """The entry at the point, wherever float32 can tell on which side of a boundary it lies."""
    compiled, vocab = kernel
    rng = np.random.default_rng(vocab + 1)
    for _ in range(3):
        logits = (3.0 * rng.standard_normal((ROWS, vocab))).astype(np.float32)
        logits[0] = np.round(logits[0])  # many equal weights, some at the nucleus' edge
        logits[1, ::3] = -np.inf
        uniform = rng.random(ROWS).astype(np.float32)
        uniform[2], uniform[3] = 0.0, np.nextafter(np.float32(1.0), np.float32(0.0))
        tokens = chosen(compiled, logits, [(temperature, top_p, u) for u in uniform])
        for row in range(ROWS):
            # The nucleus has one entry more or less where its sum is within rounding of top_p.
            allowed = set()
            for nearby in (top_p * (1 - 1e-6), top_p, min(1.0, top_p * (1 + 1e-6))):
                weights = kept_weights(logits[row], temperature, nearby)
                cumulative = np.cumsum(weights) / weights.sum()
                for point in (uniform[row] - 1e-6, uniform[row], uniform[row] + 1e-6):
                    index = int(np.searchsorted(cumulative, max(point, 0.0), side="right"))
                    last = int(np.flatnonzero(weights)[-1])
                    allowed.add(min(index, last))
            assert tokens[row] in allowed


def test_distribution() -> None:
    """Points spread evenly give each entry of the nucleus its share."""
    vocab, points = 257, 400
    compiled = GpuKernel(sample(points, vocab, SM80))
    logits = np.random.default_rng(3).standard_normal(vocab).astype(np.float32) * 2
    sampling = [(0.8, 0.6, (i + 0.5) / points) for i in range(points)]
    tokens = compiled(
        np.tile(logits, (points, 1)), np.array(sampling, np.float32), np.zeros(points, np.int32)
    )
    weights = kept_weights(logits, 0.8, 0.6)
    counts = np.bincount(tokens, minlength=vocab)
    assert (counts[weights == 0.0] == 0).all()
    assert np.abs(counts - points * weights / weights.sum()).max() <= 1.0
