"""Checkpoints in every form they come in, written by the libraries that usually write them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from gecko_mlc.checkpoint import CheckpointError, convert, open_checkpoint, random_checkpoint
from gecko_mlc.checkpoint.reader import open_tensors
from gecko_mlc.config import ConfigError, GeckoConfig

CONFIG = GeckoConfig(
    num_layers=1,
    model_dim=16,
    z_dim=8,
    value_dim=24,
    num_heads=2,
    ffn_hidden_dim=20,
    vocab_size=40,
    cema_ndim=4,
    chunk_size=8,
    timenorm_num_groups=4,
)
State = dict[str, torch.Tensor]


def state_dict() -> State:
    state = {key: torch.from_numpy(value) for key, value in random_checkpoint(CONFIG).items()}
    for key in state:
        if key.endswith("prior_count"):
            state[key] = torch.tensor(3, dtype=torch.int64)
    return state


def halves(state: State) -> tuple[State, State]:
    items = list(state.items())
    return dict(items[::2]), dict(items[1::2])


def one_safetensors(folder: Path) -> None:
    safetensors.torch.save_file(state_dict(), folder / "model.safetensors", {"format": "pt"})


def indexed_safetensors(folder: Path) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    weight_map: dict[str, str] = {}
    for name, half in zip(names, halves(state_dict()), strict=True):
        safetensors.torch.save_file(half, folder / name)
        weight_map |= dict.fromkeys(half, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors.torch.save_file({"stray": torch.ones(1)}, folder / "adapter.safetensors")


def one_pt(folder: Path) -> None:
    torch.save(state_dict(), folder / "model.pt")


def nested_pt(folder: Path) -> None:
    torch.save({"model": state_dict(), "step": 9000}, folder / "checkpoint.pt")


def consolidated_pt(folder: Path) -> None:
    for number, half in enumerate(halves(state_dict())):
        torch.save(half, folder / f"consolidated.{number:02}.pt")
    torch.save({"state": {"moment": 1.0}}, folder / "optimizer.pt")


def parameters_pt(folder: Path) -> None:
    state = {key: torch.nn.Parameter(value) for key, value in state_dict().items() if value.ndim}
    torch.save({**state_dict(), **state}, folder / "model.pth")


WRITERS = [
    one_safetensors,
    indexed_safetensors,
    one_pt,
    nested_pt,
    consolidated_pt,
    parameters_pt,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_weights(write: Callable[[Path], None], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write(source)
    (source / "params.json").write_text(json.dumps(CONFIG.to_dict()))
    config, tensors = open_checkpoint(source)
    assert config == CONFIG
    stored = state_dict()
    assert set(tensors) == set(stored) and len(tensors) == len(stored)
    for name, value in stored.items():
        assert tensors.shape(name) == tuple(value.shape)
        assert tensors[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(tensors[name], value.detach().numpy())
    np.testing.assert_array_equal(tensors.rows("embed.weight", 3, 7), stored["embed.weight"][3:7])
    assert "nothing" not in tensors
    convert(config, tensors, "q0bf16", tmp_path / "model")
    convert(config, {k: v.numpy() for k, v in stored.items()}, "q0bf16", tmp_path / "wanted")
    shard = "params_shard_0.bin"
    assert (tmp_path / "model" / shard).read_bytes() == (tmp_path / "wanted" / shard).read_bytes()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_narrow_types_and_views(suffix: str, tmp_path: Path) -> None:
    values = torch.randn(6, 5)
    state = {
        "bf16": values.to(torch.bfloat16),
        "f16": values.to(torch.float16),
        "f64": values.to(torch.float64),
        "rows": values[2:4].clone() if suffix == "safetensors" else values.T[1:3],
    }
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    tensors = open_tensors(path)
    assert tensors["bf16"].dtype == ml_dtypes.bfloat16
    for name, value in state.items():
        np.testing.assert_array_equal(tensors[name].astype(np.float64), value.double().numpy())


@pytest.mark.parametrize("name", ["params.json", "config.json"])
def test_configuration_nested_and_without_vocabulary(name: str, tmp_path: Path) -> None:
    """The reference's vocab_size is -1 until its tokenizer is known; trainers nest the model's."""
    one_pt(tmp_path)
    values = {**CONFIG.to_dict(), "vocab_size": -1, "dropout": 0.1}
    (tmp_path / name).write_text(json.dumps({"model": values, "steps": 10}))
    config, _ = open_checkpoint(tmp_path / "model.pt")
    assert config == CONFIG
    del values["vocab_size"]
    (tmp_path / name).write_text(json.dumps(values))
    assert open_checkpoint(tmp_path)[0] == CONFIG


def test_faulty_configurations_name_the_file(tmp_path: Path) -> None:
    one_safetensors(tmp_path)
    with pytest.raises(CheckpointError, match="no params.json or config.json in "):
        open_checkpoint(tmp_path)
    file = tmp_path / "params.json"
    for text, message in [
        ("{", "params.json is not JSON"),
        ("[]", "params.json: holds a list, wanted a JSON object"),
        ('{"hidden_size": 3}', "params.json: not a Gecko(.|\n)*unknown key 'hidden_size'"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_tensors(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no weights in .*\*\.safetensors, consolidated"):
        open_tensors(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="neither .safetensors nor .pt"):
        open_tensors(tmp_path / "weights.bin")


def test_shards_that_are_missing_or_overlap_are_all_named(tmp_path: Path) -> None:
    indexed_safetensors(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    shard = "model-00001-of-00002.safetensors"
    other = "model-00002-of-00002.safetensors"
    moved = next(key for key, file in values["weight_map"].items() if file == shard)
    values["weight_map"][moved] = other
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{moved} is not in {other}"):
        open_tensors(tmp_path)
    (tmp_path / shard).unlink()
    (tmp_path / other).unlink()
    with pytest.raises(CheckpointError, match=f"{shard} is missing\n *{other} is missing"):
        open_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="not a safetensors index"):
        open_tensors(tmp_path)
    folder = tmp_path / "pt"
    folder.mkdir()
    for number in range(2):
        torch.save({"a": torch.ones(1), f"b{number}": torch.ones(1)}, folder / f"{number}.pt")
    with pytest.raises(CheckpointError, match="a is in 0.pt and in 1.pt"):
        open_tensors(folder)


def test_damaged_safetensors(tmp_path: Path) -> None:
    one_safetensors(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    for data, message in [
        (whole[:5], "header is cut off"),
        (whole[:40], "header is cut off"),
        (whole[:-8], "cannot be read:(.|\n)*it is cut off"),
        (whole[:8] + b"x" * length, "not a safetensors file"),
        (whole.replace(b'"F32"', b'"F4 "', 1), "is stored as F4 , known are"),
        (whole.replace(b'"F32"', b'"F64"', 1), "bytes, not those of F64"),
    ]:
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            open_tensors(file)


class Surprise:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_pt_files_that_are_not_state_dicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.pt"
    torch.save({"weights": torch.ones(1), "extra": Surprise()}, file)
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        open_tensors(file)
    assert "must not run" not in capsys.readouterr().out
    torch.save([torch.ones(1)], file)
    with pytest.raises(CheckpointError, match="holds a list, wanted a state dict"):
        open_tensors(file)
    torch.save({"a": torch.ones(1), "step": 3, "name": "x"}, file)
    with pytest.raises(CheckpointError, match="'step' is a int, .*\n *'name' is a str, wanted a"):
        open_tensors(file)
    torch.save(state_dict(), file, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="wanted a file of torch.save in its zip format"):
        open_tensors(file)
    file.write_bytes(b"\x80\x02text")
    with pytest.raises(CheckpointError, match="model.pt"):
        open_tensors(file)
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, file)
    with pytest.raises(CheckpointError, match="stored as torch.float8_e4m3fn"):
        open_tensors(file)["a"]


def test_torch_is_only_needed_for_pt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_pt(tmp_path)
    one_safetensors(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert open_tensors(tmp_path)["embed.weight"].shape == (40, 16)
    with pytest.raises(CheckpointError, match="torch is not installed: install torch"):
        open_tensors(tmp_path / "model.pt")
