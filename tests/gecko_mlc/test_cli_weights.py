"""convert-weight and gen-config, as a user calls them."""

from __future__ import annotations

import fcntl
import json
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import models

from gecko_mlc.cli import main
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.tokenizer import TokenizerError, load_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The golden tiny model as a checkpoint folder."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(GOLDEN / "config_tiny.json", folder / "params.json")
    shutil.copy(GOLDEN / "weights_tiny.safetensors", folder / "model.safetensors")
    return folder


def word_tokenizer(folder: Path, words: list[str], **settings: object) -> Path:
    """A tokenizer.json with the given tokens, and a tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    fast = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    fast.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def chat_config(folder: Path) -> dict:
    return json.loads((folder / "mlc-chat-config.json").read_text())


def test_a_byte_model_from_checkpoint_to_model_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    arguments = [str(checkpoint), "--quantization", "q0f16", "-o", str(model)]
    assert main(["convert-weight", *arguments]) == 0
    assert main(["gen-config", *arguments]) == 0
    captured = capsys.readouterr()
    assert "1.0 MiB of weights, q0f16" in captured.out and "tokenizer bytes" in captured.out
    assert captured.err == ""  # no progress bar when nobody watches
    assert sorted(path.name for path in model.iterdir()) == [
        "mlc-chat-config.json",
        "params_shard_0.bin",
        "tensor-cache.json",
    ]
    written = chat_config(model)
    assert written["model_type"] == "gecko" and written["quantization"] == "q0f16"
    config = GeckoConfig.from_file(GOLDEN / "config_tiny.json")
    assert GeckoConfig.from_dict(written["model_config"]) == config
    assert written["vocab_size"] == 256 and written["context_window_size"] == -1
    assert written["tokenizer"] == "bytes" and written["tokenizer_files"] == []
    assert load_tokenizer(model).encode("é") == [0xC3, 0xA9]


def test_progress_bar_on_a_terminal(checkpoint: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "gecko_mlc", "convert-weight", str(checkpoint)]
    command += ["--quantization", "q0f32", "-o", str(tmp_path / "model")]
    with open(leader, "rb", buffering=0) as terminal, open(follower, "wb", buffering=0) as end:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=end)
        text = terminal.read(4096).decode()
    assert "convert-weight: 100%" in text and "1.86M/1.86M" in text


def test_faulty_weights_are_listed_and_leave_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    del weights["layers.1.mega.wz.bias"]
    weights["embed.weight"][0, 0] = float("nan")
    save_file(weights, checkpoint / "model.safetensors")
    model = tmp_path / "model"
    arguments = [str(checkpoint), "--quantization", "q0f32", "-o", str(model)]
    assert main(["convert-weight", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gecko-mlc: error: ") and "Traceback" not in error
    assert "layers.1.mega.wz.bias is missing" in error
    assert "embed.weight has 1 values that are not finite" in error
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_tokenizer_found_beside_the_checkpoint(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    word_tokenizer(
        checkpoint,
        ["<unk>", "<s>", "</s>", "gecko"],
        bos_token={"content": "<s>"},
        eos_token="</s>",
    )
    model = tmp_path / "model"
    arguments = [str(checkpoint / "model.safetensors"), "--quantization", "q0f32"]
    assert main(["gen-config", *arguments, "-o", str(model)]) == 0
    written = chat_config(model)
    assert written["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert written["bos_token_id"] == 1 and written["stop_token_ids"] == [2]
    assert load_tokenizer(model).encode("gecko", bos=True) == [1, 3]
    # Once more into the checkpoint's own folder, where the files are already.
    assert main(["gen-config", *arguments, "-o", str(checkpoint)]) == 0
    assert load_tokenizer(checkpoint).encode("gecko") == [3]
    assert capsys.readouterr().err == ""


def test_named_tokenizers(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = word_tokenizer(tmp_path / "plain", ["<unk>", "gecko"])
    silent = word_tokenizer(
        tmp_path / "silent", ["a", "<s>"], bos_token="<s>", add_bos_token=False, eos_token=None
    )
    arguments = ["gen-config", str(checkpoint), "--quantization", "q0f32", "-o", str(tmp_path)]
    for given in (plain, plain / "tokenizer.json", silent):
        assert main([*arguments, "--tokenizer", str(given)]) == 0
        written = chat_config(tmp_path)
        assert written["bos_token_id"] is None and written["stop_token_ids"] == []
        assert "no end token known" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", "bytes"]) == 0
    assert chat_config(tmp_path)["tokenizer"] == "bytes"


def test_tokenizers_that_do_not_fit(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    arguments = ["gen-config", str(checkpoint), "--quantization", "q0f32", "-o", str(model)]
    large = word_tokenizer(tmp_path / "large", [f"w{number}" for number in range(257)])
    wrong = word_tokenizer(tmp_path / "wrong", ["a"], eos_token="</s>")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{}")
    for given, message in [
        (large, "has token ids up to 256, but vocab_size is 256: this is another model's"),
        (wrong, "has eos_token '</s>', which is not a token"),
        (broken, "is not a Hugging Face tokenizer"),
        (tmp_path / "tokenizer.model", "no tokenizer at"),
    ]:
        assert main([*arguments, "--tokenizer", str(given)]) == 2
        assert message in capsys.readouterr().err
    assert not model.exists()


def test_a_model_without_a_tokenizer(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "params.json").read_text())
    (checkpoint / "params.json").write_text(json.dumps({**config, "vocab_size": 320}))
    arguments = ["gen-config", str(checkpoint), "--quantization", "q0f32", "-o", str(tmp_path)]
    assert main(arguments) == 2
    assert "or say --tokenizer none" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", "none"]) == 0
    assert "tokenizer None" not in capsys.readouterr().out
    written = chat_config(tmp_path)
    assert written["tokenizer"] is None and written["tokenizer_files"] == []
    with pytest.raises(TokenizerError, match="says that the model has no tokenizer"):
        load_tokenizer(tmp_path)


def test_models_that_cannot_read_bytes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((checkpoint / "params.json").read_text())
    arguments = ["gen-config", str(checkpoint), "--quantization", "q0f32", "-o", str(tmp_path)]
    (checkpoint / "params.json").write_text(json.dumps({**config, "vocab_size": 32000}))
    assert main(arguments) == 2
    assert "32000 tokens are not bytes (256 to 260): name the tokenizer" in capsys.readouterr().err
    (checkpoint / "params.json").write_text(json.dumps({**config, "vocab_size": 100}))
    assert main([*arguments, "--tokenizer", "bytes"]) == 2
    assert "vocab_size is 100, wanted at least 256" in capsys.readouterr().err
