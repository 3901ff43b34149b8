"""gecko-mlc validate: what passes, what fails and where, and what it says."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gecko_mlc.cli import main
from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko
from gecko_mlc.validate.tap import LAYER_OPS

Model = tuple[Path, Path]


@pytest.fixture(scope="module")
def checkpoint(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(golden / "config_tiny.json", folder / "params.json")
    shutil.copy(golden / "weights_tiny.safetensors", folder / "model.safetensors")
    return folder


def validate(model: Path, library: Path, *options: object) -> int:
    arguments = ["validate", model, "--lib", library, "--threads", 1, *options]
    return main([str(argument) for argument in arguments])


def copy_with_one_value_changed(model: Path, folder: Path, name: str, value: float) -> Path:
    """A copy of the model in which the middle value of the float32 tensor ``name`` differs."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.so"))
    index = json.loads((folder / "tensor-cache.json").read_text())
    for shard in index["records"]:
        for record in shard["records"]:
            if record["name"] == name:
                assert record["dtype"] == "float32"
                middle = record["byteOffset"] + record["nbytes"] // 8 * 4
                with (folder / shard["dataPath"]).open("r+b") as file:
                    file.seek(middle)
                    file.write(np.float32(value).tobytes())
                return folder
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("name", ["tiny_model", "alt_model"])
def test_golden_models_pass(
    name: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model, library = request.getfixturevalue(name)
    assert validate(model, library) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[-1] == "passed: 44 rows"
    assert max(map(len, lines[7:])) <= 99  # the first lines have paths in them
    rows = [line.split()[0] for line in lines if line.endswith("ok")]
    layer_1 = [f"layers.1.{op}" for op in LAYER_OPS]
    assert rows[: len(LAYER_OPS) + 1] == ["embed", *(f"layers.0.{op}" for op in LAYER_OPS)]
    assert rows[len(LAYER_OPS) + 1 : 31] == [*layer_1, "output.timenorm", "output.logits"]
    assert "greedy agreement 100.00 %" in text and "note:" not in text


def test_the_checkpoint_itself(
    tiny_model: Model, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is lost in q0f32, so the original weights give the same within float32."""
    assert validate(*tiny_model, "--checkpoint", checkpoint) == 0
    assert f"weights of {checkpoint}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "first"),
    [
        ("layers.1.nffn.fc2.weight", 30.0, "layers.1.fc2"),
        ("layers.0.nffn.fc2.weight", 30.0, "layers.0.fc2"),
        ("layers.0.nffn.fc2.weight", math.nan, "layers.0.fc2"),
        ("embed.weight", 100.0, "embed"),
        ("layers.1.mega.timenorm.bias", 1.0, "layers.1.timenorm"),
        ("layers.0.mega.cema.p", 0.999, "layers.0.cema"),
        ("layers.1.mega.rmsnorm.weight", 3.0, "layers.1.rmsnorm"),
        ("layers.0.mega.wv.weight", 30.0, "layers.0.wv"),
        ("layers.0.mega.wzrh.bias", 3.0, "layers.0.wzrh"),
        ("rope.table", -0.3, "layers.0.query"),
        ("layers.1.mega.beta", 2.0, "layers.1.memory_query"),  # row 2 of q, k, aq, ak
        ("layers.0.mega.wh2.weight", 30.0, "layers.0.wh2"),
        ("layers.1.nffn.norm.weight", 3.0, "layers.1.layernorm"),
        ("layers.1.nffn.fc1.weight", 30.0, "layers.1.fc1"),
        ("output.final_norm.weight", 3.0, "output.timenorm"),
        ("output.output.weight", 30.0, "output.logits"),
        ("layers.0.mega.timenorm.prior_var", 9.0, "layers.0.timenorm"),
    ],
)
def test_one_wrong_value_fails_where_it_is_used(
    name: str,
    value: float,
    first: str,
    tiny_model: Model,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = copy_with_one_value_changed(tiny_model[0], tmp_path / "broken", name, value)
    report = tmp_path / "report.json"
    assert validate(model, tiny_model[1], "--checkpoint", checkpoint, "--json", report) == 1
    written = json.loads(report.read_text())
    assert written["passed"] is False and written["failed"][0] == first
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(f"rows, {first} first")
    assert next(line for line in lines if "FAIL" in line).startswith(f"{first} ")
    if math.isnan(value):
        assert any(" of 27008 not finite" in line for line in lines)
        row = next(row for row in written["ops"] if row["name"] == first)
        assert row["prefill"]["not_finite"] > 0 and not row["passed"]


def test_a_wrong_rotary_table_fails_beside_its_own_weights(
    tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference takes the folder's weights, but not what follows from the configuration."""
    model = copy_with_one_value_changed(tiny_model[0], tmp_path / "broken", "rope.table", -0.3)
    assert validate(model, tiny_model[1]) == 1
    assert "layers.0.query first" in capsys.readouterr().out


def test_text_and_json(
    tiny_model: Model, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "The gecko's toes — a marvel — hold on to glass. " * 5
    file = tmp_path / "gecko.txt"
    file.write_text(text, encoding="utf-8")
    assert validate(*tiny_model, "--text", file, "--tokens", 150, "--json", "-") == 0
    captured = capsys.readouterr()
    report: dict[str, Any] = json.loads(captured.out)
    assert report["passed"] is True and report["failed"] == []
    assert report["quantization"] == "q0f32" and report["device"] == "cpu"
    assert len(report["ops"]) == 31 and len(report["state"]) == 13
    for row in report["ops"] + report["state"]:
        for path in ("prefill", "decode"):
            assert row[path]["relative"] <= row[path]["tolerance"] and row["passed"]
            assert row[path]["not_finite"] == 0 and row[path]["count"] > 0
    assert report["end_to_end"]["prefill"]["stop"] == 150
    assert report["end_to_end"]["decode"]["greedy_agreement"] == 1.0

    # The reference with the golden weights, on the same bytes.
    config = GeckoConfig.from_file(golden / "config_tiny.json")
    model = Gecko.from_tensors(config, load_file(golden / "weights_tiny.safetensors"))
    tokens = torch.tensor(list(text.encode())[:150])
    with torch.inference_mode():
        logits, _ = model(tokens[None, :-1])
    loss = torch.nn.functional.cross_entropy(logits[0].double(), tokens[1:]).item()
    assert report["text"]["predicted"] == 149
    for side in ("library", "reference"):
        assert report["text"]["perplexity"][side] == pytest.approx(math.exp(loss), rel=1e-5)
        bits = loss / math.log(2)
        assert report["text"]["bits_per_byte"][side] == pytest.approx(bits, rel=1e-5)


def test_tokens_that_do_not_reach_memory(
    tiny_model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 65, 128):
        assert validate(*tiny_model, "--tokens", count) == 0
        assert "memory is first read at token 129" in capsys.readouterr().out
    assert validate(*tiny_model, "--tokens", 129) == 0
    assert "note:" not in capsys.readouterr().out


def test_beyond_the_operations_logits_go_on(
    tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    assert validate(*tiny_model, "--tokens", 400, "--json", file) == 0
    expected = "operations of the first 256 tokens; logits and state of all 400"
    assert expected in capsys.readouterr().out
    report = json.loads(file.read_text())
    counts = {row["name"]: row["prefill"]["count"] for row in report["ops"]}
    assert counts["layers.1.fc2"] == 256 * 128 and counts["output.logits"] == 400 * 256


def test_what_cannot_be_compared(
    tiny_model: Model,
    alt_model: Model,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"\xe9t\xe9")
    short = tmp_path / "short.txt"
    short.write_text("x")
    refused: list[tuple[list[object], str]] = [
        (["--tokens", "0"], "--tokens is 0, wanted at least 1"),
        (["--text", latin], "is not UTF-8 text"),
        (["--text", short], "1 tokens of"),
        (["--text", tmp_path / "none.txt"], "none.txt"),
        (["--json", tmp_path / "none" / "report.json"], "there is no such folder"),
    ]
    for options, message in refused:
        assert validate(*tiny_model, *options) == 2
        assert message in capsys.readouterr().err
    assert validate(*alt_model, "--checkpoint", checkpoint) == 2
    error = capsys.readouterr().err
    assert "is another model" in error and "model_dim is 128, wanted 192" in error


def test_without_torch(
    tiny_model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert validate(*tiny_model) == 2
    error = capsys.readouterr().err
    assert "pip install gecko-mlc[reference]" in error and "torch==2.13.0" in error


def test_help_loads_neither_tvm_nor_torch() -> None:
    code = (
        "import sys, contextlib\n"
        "from gecko_mlc.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['validate', '--help'])\n"
        "assert not {'tvm', 'torch'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert "gecko-mlc validate models/demo" in result.stdout.split("examples:")[1]
