"""Sizes no vector divides and switches in unusual company, against the float64 reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from conftest import ModelBuilder
from reference_streams import distance, float64_logits, float64_model

from gecko_mlc.checkpoint import random_checkpoint
from gecko_mlc.checkpoint.mapping import parameters
from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko
from gecko_mlc.runtime.engine import Engine

FIVE_HEADS = GeckoConfig(
    num_layers=2,
    model_dim=60,
    z_dim=40,
    value_dim=130,
    num_heads=5,
    ffn_hidden_dim=50,
    vocab_size=257,
    cema_ndim=8,
    chunk_size=48,
    timenorm_num_groups=12,
    layernorm_num_groups=3,
    num_rope_heads=2,
)
NO_ROTATION = GeckoConfig(
    num_layers=2,
    model_dim=36,
    z_dim=21,
    value_dim=39,
    num_heads=3,
    ffn_hidden_dim=31,
    vocab_size=260,
    cema_ndim=5,
    chunk_size=24,
    output_size=33,
    timenorm_num_groups=9,
    num_rope_heads=0,
    swiglu=False,
    norm_affine=False,
    two_hop_residual=True,
)
SHARED = GeckoConfig(
    num_layers=1,
    model_dim=50,
    z_dim=18,
    value_dim=17,
    num_heads=1,
    ffn_hidden_dim=23,
    vocab_size=261,
    cema_ndim=3,
    chunk_size=16,
    timenorm_num_groups=10,
    timenorm_beta1=0.9,
    timenorm_beta2=0.95,
    layernorm_num_groups=5,
    rescale_nffn=True,
    two_hop_residual=True,
    scale_emb=True,
    share_emb=True,
)
SMALLEST = GeckoConfig(
    num_layers=1,
    model_dim=3,
    z_dim=2,
    value_dim=1,
    num_heads=1,
    ffn_hidden_dim=1,
    vocab_size=256,
    cema_ndim=1,
    chunk_size=1,
    timenorm_num_groups=1,
)
CONFIGURATIONS = {
    "five_heads": FIVE_HEADS,
    "no_rotation": NO_ROTATION,
    "shared": SHARED,
    "smallest": SMALLEST,
}


def weights(config: GeckoConfig) -> dict[str, np.ndarray]:
    """Random ones, with priors as a model has that was trained in several passes."""
    checkpoint = random_checkpoint(config, seed=1)
    tensors = {name: checkpoint[name] for name in checkpoint}
    rng = np.random.default_rng(2)
    count = 50
    # Averages over that many steps of features as small as the embedding's.
    size = 1.0 - np.power(np.array([config.timenorm_beta1, config.timenorm_beta2]), count)
    size *= np.array([config.model_dim**-0.5, 1.0 / config.model_dim])
    for name, tensor in tensors.items():
        if name.endswith("prior_count"):
            tensors[name] = np.array(count, np.int64)
        elif name.endswith("prior_mean"):
            tensors[name] = (size[0] * rng.uniform(-0.5, 0.5, tensor.shape)).astype(np.float32)
        elif name.endswith("prior_var"):
            tensors[name] = (size[1] * rng.uniform(0.5, 2.0, tensor.shape)).astype(np.float32)
    return tensors


def rounded(config: GeckoConfig, quantization: str) -> dict[str, np.ndarray]:
    """The weights as the quantization stores them: matrices rounded, the rest as it is."""
    dtype = {"q0f16": np.dtype(np.float16), "q0bf16": np.dtype(ml_dtypes.bfloat16)}[quantization]
    tensors = weights(config)
    for parameter in parameters(config, quantization):
        if parameter.dtype != "float32" and parameter.dtype != "int32":
            for source in parameter.sources:
                tensors[source.name] = tensors[source.name].astype(dtype).astype(np.float32)
    return tensors


@dataclasses.dataclass
class Pair:
    """A library's engine and the float64 model with the same weights."""

    engine: Engine
    reference: Gecko

    def check(self, tolerance: float) -> None:
        """Two sequences that pass several chunk ends: as one pass, and in batches of two."""
        engine, config = self.engine, self.engine.config
        rng = np.random.default_rng(3)
        chunk = config.chunk_size
        lengths = 5 * chunk + 3, 4 * chunk + 1
        tokens = [rng.integers(0, config.vocab_size, n) for n in lengths]
        wanted = [float64_logits(self.reference, t)[0] for t in tokens]
        for text, logits in zip(tokens, wanted, strict=True):
            with engine.new_sequence() as sequence:
                assert distance(sequence.score(text), logits) < tolerance

        with engine.new_sequence() as first, engine.new_sequence() as second:
            start = chunk + chunk // 2
            assert distance(first.prefill(tokens[0][:start]), wanted[0][start - 1]) < tolerance
            assert distance(second.prefill(tokens[1][:2]), wanted[1][1]) < tolerance
            for step in range(min(lengths[0] - start, lengths[1] - 2)):
                logits = engine.decode(
                    [second, first], [tokens[1][2 + step], tokens[0][start + step]]
                )
                assert distance(logits[0], wanted[1][2 + step]) < tolerance
                assert distance(logits[1], wanted[0][start + step]) < tolerance


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_odd_configuration(name: str, build_model: ModelBuilder) -> None:
    config = CONFIGURATIONS[name]
    folder, library = build_model(name, config, weights(config), "q0f32")
    engine = Engine(folder, library, threads=1, slots=4)
    Pair(engine, float64_model(config, weights(config))).check(3e-6)


@pytest.fixture
def narrow(request: pytest.FixtureRequest, build_model: ModelBuilder) -> Iterator[Pair]:
    tensors = rounded(FIVE_HEADS, request.param)
    folder, library = build_model(
        f"five_heads_{request.param}", FIVE_HEADS, weights(FIVE_HEADS), request.param
    )
    yield Pair(Engine(folder, library, threads=1, slots=2), float64_model(FIVE_HEADS, tensors))


# Beside the weights, which the reference has as rounded, only the rings are narrow: keys, values
# and memory keys with 11 and 8 significant bits (measured: 6e-5 and 4e-4).
@pytest.mark.parametrize(
    ("narrow", "tolerance"),
    [("q0f16", 2e-4), ("q0bf16", 1.5e-3)],
    indirect=["narrow"],
    ids=["q0f16", "q0bf16"],
)
def test_narrow_weights(narrow: Pair, tolerance: float) -> None:
    narrow.check(tolerance)
