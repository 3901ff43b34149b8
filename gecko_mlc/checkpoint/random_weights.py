"""Random weights of any size under the reference's names: for tests and benchmarks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import numpy as np

from gecko_mlc.checkpoint import mapping
from gecko_mlc.checkpoint.source import TensorSource
from gecko_mlc.config import GeckoConfig

# Spread of the vectors a training run starts at zero, so that none of them drops out of a test.
VECTOR_SCALE = 0.2
BIAS_SCALE = 0.05


class RandomCheckpoint(TensorSource):
    """A state dict whose float32 tensors are made when read, one held at a time.

    The scales are those of the reference's initialisation, except that vectors it starts at zero
    are small random numbers. A tensor depends on its name, the configuration and ``seed`` alone.
    """

    def __init__(self, config: GeckoConfig, seed: int = 0) -> None:
        self._config = config
        self._seed = seed
        self._shapes = {
            source.name: source.shape
            for parameter in mapping.parameters(config, "q0f32")
            for source in parameter.sources
        }
        self._held: tuple[str, np.ndarray] | None = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if self._held is None or self._held[0] != name:
            self._held = None  # before the next one is made
            self._held = (name, np.atleast_1d(self._make(name)))
        return self._held[1][start:stop].copy()

    def _make(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        generator = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        leaf = ".".join(name.split(".")[-2:])
        if "prior_" in leaf:
            return np.zeros(shape, np.float32)
        if leaf == "cema.theta":
            return _theta(generator, self._config.model_dim)
        if leaf == "nffn.alpha":
            layer = int(name.split(".")[1])
            return np.full(shape, 0.1 * 0.5**layer, np.float32)
        if leaf == "cema.gamma":
            scale = 1.0 / math.sqrt(self._config.cema_ndim)
        elif leaf.endswith(".bias") and "norm" not in leaf:
            scale = BIAS_SCALE
        elif len(shape) == 2 and leaf.endswith(".weight"):
            scale = matrix_scale(name, shape[1])
        else:  # norms, alpha and delta of CEMA, gamma and beta of the attention
            scale = VECTOR_SCALE
        array = generator.standard_normal(shape, dtype=np.float32)
        array *= np.float32(scale)
        return array


def matrix_scale(name: str, inputs: int) -> float:
    """The standard deviation of a matrix's elements: Kaiming's with the reference's slope of
    sqrt(5), embeddings apart."""
    gain = 1.0 if name in ("embed.weight", "output.output.weight") else 1.0 / 3.0
    return math.sqrt(gain / inputs)


def random_checkpoint(config: GeckoConfig, seed: int = 0) -> RandomCheckpoint:
    return RandomCheckpoint(config, seed)


def _theta(generator: np.random.Generator, model_dim: int) -> np.ndarray:
    """CEMA's base phases: logits of D frequencies, geometric down to 1/D, permuted. [D]"""
    frequencies = model_dim ** (-np.arange(1, model_dim + 1) / model_dim)
    logits = np.log(frequencies / (1.0 - frequencies))
    return generator.permutation(logits).astype(np.float32)
