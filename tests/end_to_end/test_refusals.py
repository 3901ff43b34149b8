"""What does not fit is refused before it runs, by a message that says what was found and wanted."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tvm
from safetensors.numpy import load_file

from gecko_mlc.checkpoint import convert, write_chat_config
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import library as runtime_library
from gecko_mlc.runtime import machine
from gecko_mlc.runtime.engine import Engine, SequenceError
from gecko_mlc.runtime.library import LibraryError
from gecko_mlc.runtime.weights import WeightsError

Model = tuple[Path, Path]


@pytest.fixture
def engine(tiny_model: Model) -> Engine:
    return Engine(*tiny_model, threads=1, slots=2)


@pytest.fixture
def weights(tiny_model: Model, tmp_path: Path) -> Path:
    """A copy of the tiny model's weights, to be damaged."""
    folder = tmp_path / "weights"
    shutil.copytree(tiny_model[0], folder, ignore=shutil.ignore_patterns("library.so"))
    return folder


def refusal(error: type[Exception], words: list[str], *arguments, **keywords) -> None:
    with pytest.raises(error) as caught:
        Engine(*arguments, **keywords)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


def test_library_of_another_configuration(tiny_model: Model, alt_model: Model) -> None:
    words = [
        "model_dim is 192 in the library, 128 in the model",
        "swiglu is False in the library, True in the model",
        "gecko-mlc compile",
    ]
    refusal(LibraryError, words, tiny_model[0], alt_model[1])


def test_library_of_another_dtype(golden: Path, tiny_model: Model, tmp_path: Path) -> None:
    config = GeckoConfig.from_file(golden / "config_tiny.json")
    convert(config, load_file(golden / "weights_tiny.safetensors"), "q0bf16", tmp_path)
    write_chat_config(config, "q0bf16", tmp_path, "bytes")
    words = ["quantization is q0f32 in the library, q0bf16 in the model", "gecko-mlc compile"]
    refusal(LibraryError, words, tmp_path, tiny_model[1])


def test_weights_of_another_dtype(golden: Path, tiny_model: Model, weights: Path) -> None:
    """The configuration says float32, the weights beside it are of another conversion."""
    config = GeckoConfig.from_file(golden / "config_tiny.json")
    convert(config, load_file(golden / "weights_tiny.safetensors"), "q0f16", weights)
    words = ["embed.weight is float16 [256, 128], wanted float32 [256, 128]", "layers.1.mega.wh2"]
    refusal(WeightsError, words, weights, tiny_model[1])


def test_library_of_another_format(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_library, "FORMAT_VERSION", 3)
    refusal(LibraryError, ["has format 2", "reads 3", "compile it again"], *tiny_model)


def test_missing_instructions(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = set(Engine(*tiny_model, threads=1).metadata["target"]["features"])
    if not needed:  # a processor family whose extensions LLVM does not name: nothing to miss
        return
    absent = sorted(needed)[0]
    monkeypatch.setattr(machine, "extensions", lambda: needed - {absent})
    refusal(LibraryError, [f"needs {absent}, which this processor lacks", "--target"], *tiny_model)
    monkeypatch.setattr(machine, "extensions", lambda: set())
    refusal(LibraryError, [", ".join(sorted(needed))], *tiny_model)
    monkeypatch.setattr(machine, "extensions", lambda: None)  # unknown: the system does not say
    Engine(*tiny_model, threads=1)


def test_another_processor_family(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.architecture()
    monkeypatch.setattr(machine, "architecture", lambda: "s390x")
    refusal(LibraryError, [f"is for {here} processors, this one is s390x"], *tiny_model)


def test_extensions_in_llvm_names(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu sse4_1 abm bmi1 avx512_bf16 avx512f\n")
    assert machine.extensions(info) == {"fpu", "sse4.1", "lzcnt", "bmi", "avx512bf16", "avx512f"}
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n")
    assert machine.extensions(info) == {"fp", "neon", "dotprod", "bf16"}
    assert machine.extensions(tmp_path / "absent") is None


def test_not_a_library(tiny_model: Model, tmp_path: Path) -> None:
    folder, library = tiny_model
    words = ["is not a file", "gecko-mlc compile"]
    refusal(LibraryError, words, folder, tmp_path / "absent.so")
    refusal(LibraryError, words, folder, tmp_path)
    text = tmp_path / "text.so"
    text.write_text("no machine code")
    refusal(LibraryError, ["text.so is no library of gecko-mlc"], folder, text)


def gpu_exists() -> bool:
    """Also an emulated one, which other tests may have brought into this process."""
    try:
        return tvm.runtime.device("cuda", 0).exist
    except (ValueError, RuntimeError, AttributeError):
        return False


@pytest.mark.parametrize("device", ["cuda", "vulkan:99", "abacus", "cpu:first", ""])
def test_wrong_device(tiny_model: Model, device: str) -> None:
    # Where there is a GPU, it is the library that does not fit.
    words = ["device cuda"] if device == "cuda" and gpu_exists() else [f"device {device!r}"]
    refusal(LibraryError, words, *tiny_model, device=device)


def test_missing_files(tiny_model: Model, weights: Path, tmp_path: Path) -> None:
    (weights / "tensor-cache.json").unlink()
    words = ["has no tensor-cache.json", "gecko-mlc convert-weight"]
    refusal(WeightsError, words, weights, tiny_model[1])
    (weights / "mlc-chat-config.json").unlink()
    words = ["has no mlc-chat-config.json", "gecko-mlc gen-config"]
    refusal(LibraryError, words, weights, tiny_model[1])
    refusal(LibraryError, words, tmp_path / "absent", tiny_model[1])


def test_damaged_weights(tiny_model: Model, weights: Path) -> None:
    index = weights / "tensor-cache.json"
    shard = next(weights.glob("params_shard_*.bin"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-8])
    words = [f"{shard} is too short, rope.table is not whole in it", "do not fit"]
    refusal(WeightsError, words, weights, tiny_model[1])
    shard.unlink()
    words = [f"{shard} is missing, with embed.weight in it", "with rope.table in it"]
    refusal(WeightsError, words, weights, tiny_model[1])
    shard.write_bytes(content)

    text = index.read_text()
    index.write_text(text.replace("layers.0.mega.wv.bias", "layers.0.mega.wu.bias"))
    refusal(WeightsError, ["layers.0.mega.wv.bias is missing"], weights, tiny_model[1])
    for damaged in ("{", "[]", '{"records": [{}]}', '{"metadata": {}}'):
        index.write_text(damaged)
        refusal(WeightsError, [f"{index} is not a tensor cache"], weights, tiny_model[1])
    index.write_text(text)
    Engine(weights, tiny_model[1], threads=1)


def test_damaged_configuration(tiny_model: Model, weights: Path) -> None:
    path = weights / "mlc-chat-config.json"
    values = json.loads(path.read_text())
    for damaged in ("", "[]", '{"quantization": "q0f32"}'):
        path.write_text(damaged)
        words = [f"{path} is not a model's configuration"]
        refusal(LibraryError, words, weights, tiny_model[1])
    values["model_config"]["num_layers"] = 3
    path.write_text(json.dumps(values))
    words = ["num_layers is 2 in the library, 3 in the model"]
    refusal(LibraryError, words, weights, tiny_model[1])


def test_numbers_of_threads_and_slots(tiny_model: Model) -> None:
    refusal(LibraryError, ["threads is 0, wanted at least 1"], *tiny_model, threads=0)
    refusal(LibraryError, ["threads is -1, wanted at least 1"], *tiny_model, threads=-1)
    refusal(SequenceError, ["slots is 0, wanted at least 1"], *tiny_model, slots=0)
    # Values: two chunks of 64 rows, 256 wide.
    words = ["slots is 65536, wanted at most 65535"]
    refusal(SequenceError, words, *tiny_model, slots=2**31 // (2 * 64 * 256))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3, 256, 1], "token 256 is outside the vocabulary, wanted 0 to 255"),
        ([3, -1], "token -1 is outside the vocabulary, wanted 0 to 255"),
        (np.array([2**40]), f"token {2**40} is outside the vocabulary"),
        ([], r"shape \(0,\)"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([1.0], "type float64"),
        (["a"], "wanted one or more integers"),
        ([True], "type bool"),
    ],
)
def test_tokens(engine: Engine, tokens, message: str) -> None:
    with engine.new_sequence() as sequence:
        sequence.prefill([1])
        for read in (sequence.prefill, sequence.score):
            with pytest.raises(SequenceError, match=message):
                read(tokens)
        if len(tokens) == 1 and np.ndim(tokens[0]) == 0:
            with pytest.raises(SequenceError, match=message):
                engine.decode([sequence], tokens)
        assert sequence.position == 1
        sequence.prefill([255])


def test_closed_sequence(engine: Engine, tmp_path: Path) -> None:
    sequence = engine.new_sequence()
    sequence.prefill([1])
    sequence.close()
    with engine.new_sequence():  # which has its slot now
        for use in (
            lambda: sequence.prefill([1]),
            lambda: sequence.score([1]),
            lambda: engine.decode([sequence], [1]),
            lambda: sequence.fork(),
            lambda: sequence.save(tmp_path / "sequence.npz"),
        ):
            with pytest.raises(SequenceError, match="the sequence is closed"):
                use()
    assert not list(tmp_path.iterdir())
    for _ in range(2):  # the refused calls have taken no slot
        engine.new_sequence()


def test_lists_of_sequences(engine: Engine, tiny_model: Model) -> None:
    with engine.new_sequence() as first, engine.new_sequence() as second:
        for sequences, tokens in (([], []), ([first], [1, 2]), ([first, second], [1])):
            message = f"found {len(sequences)} sequences and {len(tokens)} tokens"
            with pytest.raises(SequenceError, match=re.escape(message)):
                engine.decode(sequences, tokens)
        with pytest.raises(SequenceError, match="a sequence is listed twice"):
            engine.decode([first, second, first], [1, 2, 3])
        with (
            Engine(*tiny_model, threads=1).new_sequence() as foreign,
            pytest.raises(SequenceError, match="a sequence of another engine"),
        ):
            engine.decode([first, foreign], [1, 2])
        assert first.position == second.position == 0


def test_longest_sequence(engine: Engine) -> None:
    with engine.new_sequence() as sequence:
        sequence.position = 2**31 - 3
        with pytest.raises(SequenceError, match=f"a sequence holds at most {2**31 - 1} tokens"):
            sequence.prefill([1, 2, 3])
