"""The compiled library against what the reference implementation's CUDA kernels computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference_streams import distance, turned_keys
from safetensors.numpy import load_file

from gecko_mlc.runtime.engine import Engine, Sequence

Golden = tuple[Engine, dict[str, np.ndarray]]


@pytest.fixture(scope="module", params=["tiny", "alt"])
def golden_engine(request: pytest.FixtureRequest, golden: Path) -> Golden:
    folder, library = request.getfixturevalue(f"{request.param}_model")
    engine = Engine(folder, library, threads=1, slots=3)
    return engine, load_file(golden / f"golden_{request.param}_f32.safetensors")


def test_score(golden_engine: Golden) -> None:
    engine, wanted = golden_engine
    chunk = engine.config.chunk_size
    for row, tokens in enumerate(wanted["tokens"]):
        with engine.new_sequence() as sequence:
            logits = sequence.score(tokens)
        assert logits.dtype == np.float32
        assert distance(logits, wanted["logits_stream"][row]) < 1e-4
        parallel = wanted["logits_train_5chunks"][row]
        assert distance(logits[: 5 * chunk], parallel) < 1e-4


def check_state(
    engine: Engine, sequence: Sequence, row: int, wanted: dict[str, np.ndarray]
) -> None:
    """The end state of golden sequence ``row`` (see the golden data's README)."""
    config, slot = engine.config, sequence.slot
    chunk, length = config.chunk_size, sequence.position
    state = {name: tensor.numpy() for name, tensor in engine.state.items()}
    assert state["position"][slot] == length
    first = length - length % chunk - chunk
    positions = np.arange(first, length)
    rows = positions % (2 * chunk)
    for layer in range(config.num_layers):
        golden = {
            key.split(".")[2]: value[row]
            for key, value in wanted.items()
            if key.startswith(f"state.{layer}.")
        }
        # A ring's keys are rotated by the index in their chunk, the golden ones by position.
        keys = turned_keys(state["keys"][layer, slot, rows], positions - positions % chunk, config)
        found = {
            "tn_mean": state["mean"][layer, slot],
            "cema_hx": state["cema"][layer, slot],
            "awm_memory": state["memory"][layer, slot],
            "awm_log_norm": state["log_norm"][layer, slot],
            "sca_key": keys.reshape(golden["sca_key"].shape),
            "value": state["values"][layer, slot, rows].reshape(golden["value"].shape),
            "awm_key": state["memory_keys"][layer, slot, rows]
            .reshape(len(rows), config.num_heads, -1)
            .transpose(1, 0, 2),
        }
        for key, tensor in found.items():
            assert distance(tensor, golden[key]) < 1e-4, key
        # The golden variance carries float32's rounding of 1 - beta.
        assert distance(state["var"][layer, slot], golden["tn_var"]) < 5e-4
        assert golden["tn_count"] == length
    assert distance(state["mean"][-1, slot], wanted["state.out.tn_mean"][row]) < 1e-4
    assert distance(state["var"][-1, slot], wanted["state.out.tn_var"][row]) < 5e-4


def test_stream_and_end_state(golden_engine: Golden) -> None:
    """Both sequences as the golden stream was cut, their single tokens in batches of two."""
    engine, wanted = golden_engine
    chunk, tokens = engine.config.chunk_size, wanted["tokens"]
    with engine.new_sequence() as first, engine.new_sequence() as second:
        cuts = [0, 3 * chunk, 4 * chunk, 4 * chunk + chunk // 4]
        for start, end in zip(cuts, cuts[1:], strict=False):
            for row, sequence in enumerate((first, second)):
                last = sequence.prefill(tokens[row, start:end])
                assert distance(last, wanted["logits_stream"][row, end - 1]) < 1e-4
        steps = []
        for time in range(cuts[-1], tokens.shape[1]):
            steps.append(engine.decode([second, first], tokens[::-1, time].tolist()))
        decoded = np.stack(steps, axis=1)[::-1]
        for row in range(2):
            assert distance(decoded[row], wanted["logits_stream"][row, cuts[-1] :]) < 1e-4
        check_state(engine, first, 0, wanted)
        check_state(engine, second, 1, wanted)


def test_end_state_of_one_pass(golden_engine: Golden) -> None:
    engine, wanted = golden_engine
    with engine.new_sequence() as sequence:
        sequence.prefill(wanted["tokens"][1])
        check_state(engine, sequence, 1, wanted)


def test_greedy_choices_agree(golden_engine: Golden) -> None:
    """Where the golden logits leave no doubt, the library chooses the same token."""
    engine, wanted = golden_engine
    with engine.new_sequence() as sequence:
        logits = sequence.score(wanted["tokens"][0])
    golden_logits = wanted["logits_stream"][0]
    best = np.sort(golden_logits, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-3 * np.abs(golden_logits).max(axis=1)
    assert clear.mean() > 0.9
    assert (logits.argmax(1) == golden_logits.argmax(1))[clear].all()


def test_threads_do_not_change_the_result(tiny_model: tuple[Path, Path]) -> None:
    tokens = np.arange(150) % 256
    logits = []
    for threads in (2, 1):
        with Engine(*tiny_model, threads=threads).new_sequence() as sequence:
            logits.append(sequence.score(tokens))
    assert logits[0].tobytes() == logits[1].tobytes()
