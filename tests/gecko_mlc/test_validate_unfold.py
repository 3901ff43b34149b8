"""Unfolding converted weights, against the checkpoints they came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gecko_mlc.checkpoint import convert, random_checkpoint
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.weights import stored_arrays
from gecko_mlc.validate.unfold import unfold

Arrays = Mapping[str, np.ndarray]

# What float32 leaves of numbers around one. Of a rotation, such as q, the error is absolute.
RELATIVE, ABSOLUTE = 3e-7, 1e-7


def folded(config: GeckoConfig, tensors: Arrays, quantization: str, folder: Path) -> Arrays:
    convert(config, tensors, quantization, folder)
    return stored_arrays(folder)


def golden_model(golden: Path, name: str) -> tuple[GeckoConfig, Arrays]:
    config = GeckoConfig.from_file(golden / f"config_{name}.json")
    return config, load_file(golden / f"weights_{name}.safetensors")


@pytest.mark.parametrize("quantization", ["q0f32", "q0bf16"])
@pytest.mark.parametrize("name", ["tiny", "alt"])  # alt: share_emb, no affine, no fc3, nffn.alpha
def test_folding_again_gives_the_same(
    golden: Path, name: str, quantization: str, tmp_path: Path
) -> None:
    config, checkpoint = golden_model(golden, name)
    once = folded(config, checkpoint, quantization, tmp_path / "once")
    tensors = unfold(config, quantization, once)
    again = folded(config, tensors, quantization, tmp_path / "again")
    assert list(again) == list(once)
    for parameter, expected in once.items():
        found = again[parameter]
        assert found.dtype == expected.dtype
        if expected.ndim == 2 and "cema" not in parameter and not parameter.endswith("mega.gamma"):
            np.testing.assert_array_equal(found, expected, parameter)
        else:
            np.testing.assert_allclose(found, expected, RELATIVE, ABSOLUTE, err_msg=parameter)


@pytest.mark.parametrize("name", ["tiny", "alt"])
def test_the_state_dict_is_the_checkpoints(golden: Path, name: str, tmp_path: Path) -> None:
    config, checkpoint = golden_model(golden, name)
    tensors = unfold(config, "q0f32", folded(config, checkpoint, "q0f32", tmp_path))
    copies = {"rope.freqs", "output.output.weight"} if config.share_emb else {"rope.freqs"}
    assert set(tensors) == set(checkpoint) - copies
    for key, found in tensors.items():
        assert found.dtype == np.float64
        # A logit magnifies the rounding of what it was folded to.
        tolerance = 1e-3 if key.endswith(("alpha", "delta", "theta")) else 1e-6
        np.testing.assert_allclose(found, checkpoint[key], tolerance, tolerance, err_msg=key)


def test_priors_that_are_not_zero(tmp_path: Path, golden: Path) -> None:
    config, checkpoint = golden_model(golden, "tiny")
    norm = "layers.1.mega.timenorm."
    groups = np.linspace(0.1, 2.0, config.timenorm_num_groups, dtype=np.float32)
    count = np.array(1000, np.int64)
    priors: dict[str, np.ndarray] = {
        norm + "prior_count": count,
        norm + "prior_mean": groups,
        norm + "prior_var": groups,
    }
    arrays = folded(config, {**checkpoint, **priors}, "q0f32", tmp_path)
    tensors = unfold(config, "q0f32", arrays)
    for key, expected in priors.items():
        assert tensors[key].shape == expected.shape
        np.testing.assert_array_equal(tensors[key], expected)


@pytest.mark.parametrize("modes", [1, 2, 5, 16])
def test_cema_at_the_edges(modes: int, tmp_path: Path) -> None:
    """Coefficients that float32 rounds to 0 or 1, and phases of 0 and of a whole turn."""
    config = GeckoConfig(
        num_layers=1,
        model_dim=128,
        z_dim=8,
        value_dim=8,
        num_heads=2,
        ffn_hidden_dim=8,
        vocab_size=8,
        cema_ndim=modes,
        chunk_size=4,
        timenorm_num_groups=4,
    )
    generator = np.random.default_rng(modes)
    edges = np.array([-120.0, -90.0, -30.0, -15.0, -5.0, 0.0, 5.0, 15.0, 30.0, 90.0])
    checkpoint = dict(random_checkpoint(config))
    cema = "layers.0.mega.cema."
    for key in ("alpha", "delta", "theta"):
        checkpoint[cema + key] = generator.choice(edges, checkpoint[cema + key].shape)
    once = folded(config, checkpoint, "q0f32", tmp_path / "once")
    tensors = unfold(config, "q0f32", once)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    again = folded(config, tensors, "q0f32", tmp_path / "again")
    np.testing.assert_allclose(again[cema + "p"], once[cema + "p"], rtol=3e-7, atol=0)
    # |q| is known to its rounding, its phase to the rounding of |q|.
    np.testing.assert_allclose(again[cema + "q"], once[cema + "q"], rtol=0, atol=3e-7)
