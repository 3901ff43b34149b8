"""A GPU's library, CUDA's and Metal's on emulated devices and Vulkan's on Mesa's driver for CPUs:
what the CPU's is held to, and what only a GPU's has.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import BATCHES
from emulated_cuda import build_emulated
from reference_streams import distance
from safetensors.numpy import load_file

from gecko_mlc.bench import cuda, gpu, random_parameters
from gecko_mlc.bench.random_parameters import Noise
from gecko_mlc.cli import main
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.engine import Engine, Sequence, SequenceError
from gecko_mlc.runtime.memory import TensorMemory
from gecko_mlc.runtime.sampling import Sampler, SamplingParams

Model = tuple[Path, Path]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module", params=["cuda", "vulkan", "metal"])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(
    device: str,
    golden: Path,
    lavapipe_model: Callable[[str, str], Model],
    metal_model: Callable[[str, str], Model],
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    if device == "vulkan":
        return lavapipe_model("tiny", "q0f32")
    if device == "metal":
        return metal_model("tiny", "q0f32")
    config = GeckoConfig.from_file(golden / "config_tiny.json")
    tensors = load_file(golden / "weights_tiny.safetensors")
    return build_emulated(tmp_path_factory.mktemp("cuda") / "tiny", config, tensors, "q0f32")


@pytest.fixture(scope="module")
def engine(device: str, model: Model) -> Engine:
    return Engine(*model, device=device, slots=4)


@pytest.fixture
def sequences(engine: Engine) -> Iterator[list[Sequence]]:
    """Three that have read different texts."""
    made = [engine.new_sequence() for _ in range(3)]
    for start, sequence in enumerate(made):
        sequence.prefill(np.arange(5 + start) * 7 + start)
    yield made
    for sequence in made:
        sequence.close()


def state_of(engine: Engine, slot: int) -> dict[str, bytes]:
    return {
        name: np.asarray(
            tensor.numpy()[slot] if name == "position" else tensor.numpy()[:, slot]
        ).tobytes()
        for name, tensor in engine.state.items()
    }


def sampled(engine: Engine, sequences: list[Sequence], params: SamplingParams) -> list[list[int]]:
    """Twelve tokens of each sequence, sampled on the device."""
    samplers = [Sampler(params) for _ in sequences]
    steps = engine.steps(sequences, [1] * len(sequences), samplers)
    return np.array(list(itertools.islice(steps, 12))).T.tolist()


def test_golden_stream(engine: Engine, golden: Path) -> None:
    """Prefill to the last chunk, then single tokens across its end; both sequences in a batch."""
    wanted = load_file(golden / "golden_tiny_f32.safetensors")
    tokens, chunk = wanted["tokens"], engine.config.chunk_size
    with engine.new_sequence() as first, engine.new_sequence() as second:
        start = 3 * chunk - 3
        for row, sequence in enumerate((first, second)):
            last = sequence.prefill(tokens[row, :start])
            assert distance(last, wanted["logits_stream"][row, start - 1]) < 3e-5
        for time in range(start, start + 6):
            logits = engine.decode([second, first], tokens[::-1, time].tolist())
            for row, found in enumerate(logits[::-1]):
                assert distance(found, wanted["logits_stream"][row, time]) < 3e-5
        assert engine.state["position"].numpy()[first.slot] == first.position == start + 6


def test_idle_rows_touch_nothing(engine: Engine, sequences: list[Sequence]) -> None:
    """Three of four rows; the fourth slot, and that of a sequence left out, stay as they are."""
    assert BATCHES[-1] == 4
    other = engine.new_sequence()
    before = state_of(engine, other.slot)
    together = engine.decode(sequences, [9, 8, 7])
    assert together.shape == (3, 256)
    assert state_of(engine, other.slot) == before
    other.close()


def test_a_batch_gives_what_its_sequences_give_alone(
    engine: Engine, sequences: list[Sequence]
) -> None:
    alone = []
    for sequence, token in zip(sequences, [9, 8, 7], strict=True):
        with sequence.fork() as copy:
            alone.append(engine.decode([copy], [token])[0])
    assert distance(engine.decode(sequences, [9, 8, 7]), np.stack(alone)) < 1e-6


def test_steps_choose_what_logits_say(engine: Engine, sequences: list[Sequence]) -> None:
    """Greedy, and a step ahead: every token given out has been read."""
    with sequences[0].fork() as copy:
        device = sampled(engine, sequences[:2], GREEDY)[0]
        assert sequences[0].position == 5 + 12 + 1
        token, host = 1, []
        for _ in range(12):
            token = int(engine.decode([copy], [token])[0].argmax())
            host.append(token)
        assert device == host
        engine.decode([copy], [token])
        found, wanted = (engine.decode([s], [3])[0] for s in (sequences[0], copy))
        assert distance(found, wanted) < 1e-6


def test_sampling_is_repeatable(engine: Engine, sequences: list[Sequence]) -> None:
    texts = []
    for seed in (5, 5, 6):
        with sequences[1].fork() as copy:
            texts += sampled(engine, [copy], SamplingParams(temperature=5.0, top_p=0.9, seed=seed))
    assert texts[0] == texts[1] != texts[2]
    assert all(0 <= token < 256 for token in texts[2])


def test_steps_that_others_ended(engine: Engine, sequences: list[Sequence]) -> None:
    """Batches of another size do not disturb them, those of the same size do."""
    samplers = [Sampler(GREEDY)]
    steps = engine.steps(sequences[:1], [1], samplers)
    next(steps)
    engine.decode(sequences[1:], [2, 2])
    next(steps)
    engine.decode(sequences[2:], [2])
    with pytest.raises(SequenceError, match="begin them anew"):
        next(steps)


def test_steps_that_cannot_be(
    engine: Engine, sequences: list[Sequence], device: str, model: Model
) -> None:
    picky = Sampler(SamplingParams(top_k=3))
    for arguments, message in [
        ((sequences[:1], [1], [picky]), "without top-k and repetition penalty"),
        ((sequences[:1], [1], []), "a sampler for each sequence"),
        ((sequences[:1], [256], [Sampler(GREEDY)]), "token 256 is outside the vocabulary"),
    ]:
        with pytest.raises(SequenceError, match=message):
            next(engine.steps(*arguments))
    five = Engine(*model, device=device, slots=5)
    many = [five.new_sequence() for _ in range(5)]
    with pytest.raises(SequenceError, match="at most 4 of them on the device"):
        next(five.steps(many, [1] * 5, [Sampler(GREEDY)] * 5))
    # Their logits come in two steps; another engine has its own graphs and buffers.
    logits = five.decode(many, [1, 2, 3, 4, 5])
    assert distance(logits[4], five.decode(many[:1], [5])[0]) > 0.01
    with engine.new_sequence() as fresh:
        assert distance(logits[2], engine.decode([fresh], [3])[0]) < 1e-6


def test_a_saved_sequence_goes_on(
    engine: Engine, sequences: list[Sequence], tmp_path: Path
) -> None:
    sequences[2].save(tmp_path / "sequence")
    with engine.load_sequence(tmp_path / "sequence") as loaded:
        found, wanted = (engine.decode([s], [4])[0] for s in (loaded, sequences[2]))
        assert found.tobytes() == wanted.tobytes()


def test_validate(
    device: str, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, library = model
    report = tmp_path / "report.json"
    options = ["--lib", str(library), "--device", device, "--tokens", "135"]
    assert main(["validate", str(folder), *options, "--json", str(report)]) == 0
    assert "inside another kernel" in capsys.readouterr().out
    values = json.loads(report.read_text())
    rows = {row["name"]: row for row in values["ops"]}
    assert len(rows) == 31
    assert "decode" in rows["layers.1.fc2"] and "decode" not in rows["layers.1.layernorm"]
    assert values["end_to_end"]["decode"]["relative"] < 3e-6


def test_generate(device: str, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    folder, library = model
    options = ["--lib", str(library), "--device", device, "--max-tokens", "6"]
    texts = []
    for penalty in ("1", "1.0000001"):  # on the device, on the host
        arguments = ["-p", "gecko", "--temperature", "0", "--repetition-penalty", penalty]
        assert main(["generate", str(folder), *options, *arguments]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("device", ["metal"], indirect=True)
def test_bench_cannot_measure_metal(
    device: str, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, library = model
    assert main(["bench", str(folder), "--lib", str(library), "--device", device]) != 0
    assert "cannot measure on device metal" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cuda", "vulkan"], indirect=True)
def test_bench(device: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "COPY_BYTES", 2**16)
    monkeypatch.setattr(cuda, "STALL_COPIES", 1)
    monkeypatch.setattr(cuda, "GRAPH_NODES", 2)
    monkeypatch.setattr(gpu.Gpu, "steps", 2)
    folder, library = model
    options = ["--lib", str(library), "--device", device, "--prompt", "3", "--decode", "2"]
    options += ["--position", "9", "--batch", "1", "--rounds", "1"]
    target = tmp_path / "result.json"
    assert main(["bench", str(folder), *options, "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    assert [step["between"] is None for step in result["steps"]] == [False, True]
    prefill, decode = ({row["name"]: row for row in s["operations"]} for s in result["steps"])
    assert prefill["timenorm"]["calls"] == 3 and decode["attention_step"]["calls"] == 2
    assert all(row["bytes"] for name, row in decode.items() if name != "advance_step")
    assert result["limits"]["threads"] is None and result["memory"]["workspace"] is not None
    assert result["decode"][0]["seconds"] > 0 and result["reference"] is None


def test_random_parameters(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_parameters, "_BLOCK", 1009)
    memory = TensorMemory(engine.library.device)
    made = [random_parameters.random_parameters(Path(), engine.library, memory) for _ in range(2)]
    rows = engine.metadata["params"]
    for row, first, second in zip(rows, *made, strict=True):
        assert list(first.shape) == row["shape"] and str(first.dtype) == row["dtype"]
        assert first.numpy().tobytes() == second.numpy().tobytes()
    by_name = {row["name"]: tensor.numpy() for row, tensor in zip(rows, made[0], strict=True)}
    wv = by_name["layers.0.mega.wv.weight"]
    assert wv.std() == pytest.approx(1 / np.sqrt(3 * wv.shape[1]), rel=0.1)
    assert len(np.unique(wv, axis=0)) == len(wv)
    half = memory.empty((5000,), "bfloat16")
    Noise(memory).fill(half, 2.0)
    assert half.numpy().astype(np.float32).std() == pytest.approx(2.0, rel=0.1)
