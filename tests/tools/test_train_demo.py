"""The demo: what is held out, a training run in small, and the committed checkpoint."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from gecko_mlc.checkpoint import open_checkpoint
from gecko_mlc.reference import Gecko
from tools.demo_corpus import evaluation_text, is_held_out, modules, stdlib, text

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / "train_demo.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def library(folder: Path) -> Path:
    """A small standard library, some of its files left out and some held out."""
    for i in range(40):
        path = folder / f"package{i % 3}" / f"module{i}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"def number():\n    return {i}\n" * 20)
    for name in ("site-packages", "test"):
        (folder / name).mkdir()
        (folder / name / "other.py").write_text("left out")
    return folder


def test_every_file_is_on_one_side(tmp_path: Path) -> None:
    folder = library(tmp_path)
    names = list(modules(folder))
    assert len(names) == 40 and names == sorted(names)
    kept, held_out = text(folder, held_out=False), text(folder, held_out=True)
    assert held_out.count(b"\0") == sum(map(is_held_out, names)) > 0
    assert kept.count(b"\0") == 40 - held_out.count(b"\0") > 0
    assert b"left out" not in kept + held_out
    for name, path in modules(folder).items():
        assert (path.read_bytes() in held_out) == is_held_out(name)
    assert evaluation_text(folder, 100) == held_out[:100]


def test_held_out_modules_do_not_change_with_python() -> None:
    """The committed model was not trained on these: its numbers hang on this choice."""
    known = ("_markupbase", "asyncio.selector_events", "calendar", "http.server", "mailbox")
    assert all(map(is_held_out, known))
    assert not any(map(is_held_out, ("argparse", "json.decoder", "typing", "turtle")))


def test_training_writes_a_checkpoint_that_evaluates(tmp_path: Path) -> None:
    folder, output = library(tmp_path / "lib"), tmp_path / "out"
    sizes = ("--steps", "2", "--batch", "1", "--length", "300")
    log = run("--stdlib", folder, "--output", output, *sizes)
    assert sorted(p.name for p in output.iterdir()) == [
        "README.md",
        "model.safetensors",
        "params.json",
    ]
    stored = log.splitlines()[-1].split()[0]
    assert run("--stdlib", folder, "--evaluate", output).split()[0] == stored
    assert f"**{float(stored):.4f} bits per byte**" in (output / "README.md").read_text()


def test_the_committed_model_predicts_python() -> None:
    folder = ROOT / "tools" / "demo"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 8_000_000
    config, tensors = open_checkpoint(folder)
    assert json.loads((folder / "params.json").read_text()) == config.to_dict()
    model = Gecko.from_tensors(config, {n: torch.from_numpy(tensors[n]) for n in tensors})
    tokens = torch.tensor([list(evaluation_text(stdlib(), 6000))])
    with torch.inference_mode():
        logits, _ = model(tokens[:, :-1])
    bits = F.cross_entropy(logits[0], tokens[0, 1:]).item() / math.log(2.0)
    assert bits < 1.6
