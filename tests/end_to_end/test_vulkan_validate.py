"""The whole table of ``validate`` on a Vulkan device, of the golden models and the demo's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Model
from reference_streams import distance
from safetensors.numpy import load_file

from gecko_mlc.cli import main
from gecko_mlc.runtime.engine import Engine

LavapipeModel = Callable[[str, str], Model]
# Twice the largest error of a model's logits against float64 that was measured on either driver.
TOLERANCE = {"q0f32": 2e-6, "q0f16": 1.5e-3}


@pytest.mark.parametrize("quantization", TOLERANCE)
@pytest.mark.parametrize("name", ["tiny", "alt", "demo"])
def test_validate(
    name: str, quantization: str, lavapipe_model: LavapipeModel, tmp_path: Path
) -> None:
    folder, library = lavapipe_model(name, quantization)
    report = tmp_path / "report.json"
    options = ["--lib", str(library), "--device", "vulkan", "--json", str(report)]
    assert main(["validate", str(folder), *options]) == 0
    values = json.loads(report.read_text())
    for path in ("prefill", "decode"):
        assert values["end_to_end"][path]["relative"] < TOLERANCE[quantization]


@pytest.mark.parametrize("name", ["tiny", "alt"])
def test_golden_streams(name: str, lavapipe_model: LavapipeModel, golden: Path) -> None:
    """All logits that the reference implementation's CUDA kernels gave."""
    engine = Engine(*lavapipe_model(name, "q0f32"), device="vulkan")
    wanted = load_file(golden / f"golden_{name}_f32.safetensors")
    for tokens, logits in zip(wanted["tokens"], wanted["logits_stream"], strict=True):
        with engine.new_sequence() as sequence:
            assert distance(sequence.score(tokens.astype(np.int32)), logits) < 3e-5
