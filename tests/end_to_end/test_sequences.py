"""State as data: fork, save, load, its size, and positions as far as four million."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_streams import distance, float64_logits, float64_model
from safetensors.numpy import load_file

from gecko_mlc.reference import State
from gecko_mlc.reference.ops import rotary, rotation
from gecko_mlc.runtime import sequence_file
from gecko_mlc.runtime.engine import Engine, SequenceError
from gecko_mlc.runtime.sequence_file import SequenceFileError


@pytest.fixture(scope="module")
def engine(tiny_model: tuple[Path, Path]) -> Engine:
    return Engine(*tiny_model, threads=1, slots=3)


TOKENS = np.random.default_rng(0).integers(0, 256, 700)


# In chunk 0, at a chunk's end with a memory just committed, and inside a chunk.
@pytest.mark.parametrize("position", [5, 192, 230])
def test_fork_save_and_load_continue(engine: Engine, tmp_path: Path, position: int) -> None:
    with engine.new_sequence() as sequence:
        sequence.prefill(TOKENS[:position])
        path = tmp_path / "sequence.npz"
        sequence.save(path)
        with sequence.fork() as fork, engine.load_sequence(path) as loaded:
            assert fork.position == loaded.position == position
            rest = TOKENS[position : position + 150]
            wanted = sequence.score(rest)
            assert fork.score(rest).tobytes() == wanted.tobytes()
            assert loaded.score(rest).tobytes() == wanted.tobytes()
            batch = engine.decode([loaded, sequence, fork], [7, 7, 7])
            assert batch[0].tobytes() == batch[1].tobytes() == batch[2].tobytes()


def test_fork_goes_its_own_way(engine: Engine) -> None:
    with engine.new_sequence() as sequence:
        sequence.prefill(TOKENS[:100])
        with sequence.fork() as fork:
            fork.prefill(TOKENS[300:500])
        with sequence.fork() as untouched:
            wanted = untouched.score(TOKENS[100:200])
        assert sequence.score(TOKENS[100:200]).tobytes() == wanted.tobytes()


def test_slot_is_fresh_when_taken_again(engine: Engine) -> None:
    with engine.new_sequence() as sequence:
        wanted = sequence.score(TOKENS[:100])
        sequence.prefill(TOKENS[100:400])
        slot = sequence.slot
    with engine.new_sequence() as sequence:
        assert (sequence.slot, sequence.position) == (slot, 0)
        assert sequence.score(TOKENS[:100]).tobytes() == wanted.tobytes()


def test_closing_frees_the_slot(engine: Engine) -> None:
    sequences = [engine.new_sequence() for _ in range(3)]
    with pytest.raises(SequenceError, match=r"all 3 slots are taken: close a sequence"):
        engine.new_sequence()
    with pytest.raises(SequenceError, match="all 3 slots are taken"):
        sequences[0].fork()
    sequences[1].close()
    sequences[1].close()
    again = engine.new_sequence()
    assert again.slot not in {sequences[0].slot, sequences[2].slot}
    with pytest.raises(SequenceError):
        engine.new_sequence()
    for sequence in (sequences[0], again, sequences[2]):
        sequence.close()


def test_state_has_a_constant_size(engine: Engine, tmp_path: Path) -> None:
    """The same tensors at the same addresses, and files of the same size, at every position."""

    def memory() -> list[tuple[int, int]]:
        tensors = [torch.from_dlpack(tensor) for tensor in engine.state.values()]
        return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]

    chunk = engine.config.chunk_size
    before = memory()
    per_slot = engine.metadata["memory"]["slot"]
    assert sum(nbytes for _, nbytes in before) == 3 * per_slot
    sizes = set()
    with engine.new_sequence() as sequence:
        for part in range(11):
            path = tmp_path / f"{part}.npz"
            sequence.save(path)
            sizes.add(path.stat().st_size)
            assert memory() == before
            sequence.prefill(TOKENS[:chunk])
    assert len(sizes) == 1


def test_failed_save_leaves_the_old_file_and_nothing_else(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sequence.npz"
    with engine.new_sequence() as sequence:
        sequence.prefill(TOKENS[:9])
        sequence.save(path)
        content = path.read_bytes()
        sequence.prefill(TOKENS[9:20])

        def disk_full(file, **_arrays) -> None:
            file.write(b"half of it")
            raise OSError("no space left on device")

        monkeypatch.setattr(sequence_file.np, "savez", disk_full)
        with pytest.raises(OSError, match="no space left"):
            sequence.save(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_foreign_files_are_refused(
    engine: Engine, alt_model: tuple[Path, Path], tmp_path: Path
) -> None:
    other = Engine(*alt_model, threads=1)
    saved = tmp_path / "alt.npz"
    with other.new_sequence() as sequence:
        sequence.prefill([1, 2, 3])
        sequence.save(saved)
    with pytest.raises(SequenceFileError, match="saved with another model") as error:
        engine.load_sequence(saved)
    assert '"model_dim": 192' in str(error.value) and '"model_dim": 128' in str(error.value)

    with pytest.raises(SequenceFileError, match="is not a file"):
        engine.load_sequence(tmp_path / "absent.npz")
    contents = {
        "text": b"these are not tensors",
        "empty": b"",
        "cut": saved.read_bytes()[:2000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "arrays.npz", weights=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("model", "not an array")
    for name in (*contents, "array.npy", "arrays.npz", "text.zip"):
        with pytest.raises(SequenceFileError, match="is no saved sequence"):
            engine.load_sequence(tmp_path / name)
    assert len(engine._free) == 3, "a refused file keeps a slot"


def at_position(path: Path, position: int) -> None:
    """Change a saved sequence's position, and nothing else."""
    with np.load(path) as archive:
        arrays = dict(archive)
    assert arrays["tensor_0"].shape == (1, 1)
    arrays["tensor_0"] = np.array([[position]], np.int32)
    np.savez(path, allow_pickle=False, **arrays)


def moved(state: State, distance: int, engine: Engine) -> State:
    """The float64 state as if ``distance`` tokens more had gone before: keys turn further."""
    config = engine.config
    device = torch.device("cpu")
    turn = rotation(distance, 1, config.z_head_dim, config.rope_base, torch.float64, device)
    for layer in state.layers:
        turns = turn.expand(layer.key.shape[1], -1)
        layer.key = rotary(layer.key, turns, config.rope_heads)
    state.position += distance
    return state


@pytest.mark.parametrize("model", ["tiny", "alt"])
@pytest.mark.parametrize("index", ["inside a chunk", "before its end"])
def test_four_million_tokens_on(
    request: pytest.FixtureRequest, golden: Path, tmp_path: Path, model: str, index: str
) -> None:
    """From the same state at position 4 000 000, library and float64 reference agree as at 0.

    Angles taken in float32 at that position would be off by a tenth of a radian.
    """
    folder, library = request.getfixturevalue(f"{model}_model")
    engine = Engine(folder, library, threads=1)
    config, chunk = engine.config, engine.config.chunk_size
    reference = float64_model(config, load_file(golden / f"weights_{model}.safetensors"))
    start = 3 * chunk + (5 if index == "inside a chunk" else chunk - 1)
    further = 4_000_000 // (2 * chunk) * 2 * chunk
    tokens = TOKENS[: start + 2 * chunk + 9]

    path = tmp_path / "sequence.npz"
    with engine.new_sequence() as sequence:
        sequence.prefill(tokens[:start])
        sequence.save(path)
    at_position(path, start + further)
    _, state = float64_logits(reference, tokens[:start])
    with torch.inference_mode():
        state = moved(state, further, engine)
    wanted, _ = float64_logits(reference, tokens[start:], state)
    with engine.load_sequence(path) as sequence:
        assert sequence.position > 3_999_000
        decoded = [engine.decode([sequence], [int(t)])[0] for t in tokens[start : start + 12]]
        rest = sequence.score(tokens[start + 12 :])
        assert sequence.position == further + len(tokens)
    assert distance(np.concatenate([decoded, rest]), wanted) < 3e-6
