"""Every Metal kernel of a model, run as MSL on the emulated device, against the reference.

What a library does is in test_gpu_library.py; here it is done with every type of weights, by every
kernel, and with threads in every order.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path

import metal_emulator
import numpy as np
import pytest
from conftest import BATCHES, Model

from gecko_mlc.cli import main
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.sampling import Sampler, SamplingParams


@pytest.fixture(scope="module", params=["q0f16", "q0bf16"])
def model(request: pytest.FixtureRequest, metal_model: Callable[[str, str], Model]) -> Model:
    return metal_model("tiny", request.param)


@pytest.fixture(scope="module")
def kernels(model: Model) -> set[str]:
    """Names of the library's kernels."""
    found = re.findall(rb"kernel void (\w+)\(", model[1].read_bytes())
    return {name.decode() for name in found}


def test_validate(model: Model, tmp_path: Path) -> None:
    folder, library = model
    report = tmp_path / "report.json"
    options = ["--lib", str(library), "--device", "metal", "--tokens", "135", "--json", str(report)]
    assert main(["validate", str(folder), *options]) == 0
    assert len(json.loads(report.read_text())["ops"]) == 31


def read(model: Model, order: str) -> bytes:
    """Two chunks and more, in batches of every size and sampled: logits, tokens, the state."""
    engine = Engine(*model, device="metal", slots=BATCHES[-1] + 1)
    chunk = engine.config.chunk_size
    tokens = np.random.default_rng(7).integers(0, engine.config.vocab_size, 2 * chunk + 1)
    sampler = Sampler(SamplingParams(temperature=0.8, top_p=0.9, seed=3))
    with metal_emulator.thread_order(order):
        sequences = [engine.new_sequence() for _ in range(BATCHES[-1])]
        found = [sequences[0].score(tokens[: 2 * chunk - 2])]
        found += [sequence.prefill(tokens[:3]) for sequence in sequences[1:]]
        for batch in BATCHES:
            found.append(engine.decode(sequences[:batch], tokens[:batch].tolist()))
            steps = engine.steps(sequences[:batch], [1] * batch, [sampler] * batch)
            found += [np.array(step) for step in itertools.islice(steps, 2)]
        with sequences[0].fork() as copy:
            found.append(engine.decode([copy], [2]))
        found += [tensor.numpy() for tensor in engine.state.values()]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in found)


def test_threads_in_any_order(model: Model, kernels: set[str]) -> None:
    """The same bits, with every kernel of the library."""
    metal_emulator.launched()
    forward = read(model, "forward")
    assert metal_emulator.launched() == kernels
    assert all(read(model, order) == forward for order in ("reverse", "shuffled"))
