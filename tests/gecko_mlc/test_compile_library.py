"""The compile driver: targets, what a compilation leaves behind, and the cache of libraries."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gecko_mlc.checkpoint import convert, random_checkpoint, write_chat_config
from gecko_mlc.cli import main
from gecko_mlc.compile import CompileError, build, cache
from gecko_mlc.compile import library as compiler
from gecko_mlc.compile.library import compile_library
from gecko_mlc.compile.targets import TargetError, cpu_target, resolve, vector_unit
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import machine, metal
from gecko_mlc.runtime.engine import Engine
from tir_kernels.vector_unit import AVX2, AVX512, NEON, PORTABLE

CONFIG = GeckoConfig(
    num_layers=1,
    model_dim=12,
    z_dim=8,
    value_dim=20,
    num_heads=2,
    ffn_hidden_dim=10,
    vocab_size=256,
    cema_ndim=2,
    chunk_size=6,
    timenorm_num_groups=3,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    convert(CONFIG, random_checkpoint(CONFIG), "q0f32", folder)
    write_chat_config(CONFIG, "q0f32", folder, "bytes")
    return folder


def test_target_names() -> None:
    with pytest.raises(TargetError, match="no target 'abacus'; there are cpu, cpu-x86-64-v3"):
        resolve("abacus")
    with pytest.raises(TargetError, match="LLVM knows no processor 'abacus'; this machine's is"):
        resolve("cpu", mcpu="abacus")
    here = cpu_target()
    assert here.architecture == machine.architecture()
    assert set(here.features) <= (machine.extensions() or set(here.features))
    assert resolve("cpu", mcpu=here.options["mcpu"]) == here


@pytest.mark.parametrize(
    ("features", "unit"),
    [
        ({"avx2", "fma", "avx512f"}, AVX512),
        ({"avx", "avx2", "fma"}, AVX2),
        ({"avx2"}, PORTABLE),
        ({"neon"}, NEON),
        (set(), PORTABLE),
    ],
)
def test_vector_unit_of_a_processor(features: set[str], unit: object) -> None:
    assert vector_unit(features) is unit


def test_compile_verb(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A library for an older processor of this family, with the module after every pass."""
    target = "cpu-x86-64-v3" if machine.architecture() == "x86_64" else "cpu"
    library, dump = tmp_path / "out" / "model.so", tmp_path / "ir"
    arguments = ["compile", str(model), "--target", target, "-o", str(library)]
    assert main([*arguments, "--dump-ir", str(dump)]) == 0
    assert f"{library}: q0f32 for" in capsys.readouterr().err
    assert list(library.parent.iterdir()) == [library]

    files = sorted(file.name for file in dump.iterdir())
    assert files[0] == "00_model.py" and files[-1].endswith("_AttachGlobalSymbol.py")
    assert [int(name[:2]) for name in files] == list(range(len(files)))
    assert "def prefill" in (dump / files[0]).read_text()

    engine = Engine(model, library, threads=1)
    assert engine.metadata["target"]["name"] == target
    assert engine.metadata["quantization"] == "q0f32"
    assert engine.config == CONFIG
    tokens = np.arange(20)
    with engine.new_sequence() as sequence:
        whole = sequence.score(tokens)
    with engine.new_sequence() as sequence:
        steps = [engine.decode([sequence], [int(token)])[0] for token in tokens]
    np.testing.assert_allclose(steps, whole, rtol=1e-4, atol=1e-5)


def test_without_a_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(
        CompileError, match=r"neither g\+\+ nor clang\+\+.*install a C\+\+ compiler"
    ):
        compile_library(CONFIG, "q0f32", resolve("cpu"), tmp_path / "out" / "model.so")
    assert not list(tmp_path.iterdir())


def test_unknown_names_end_with_a_message(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.so"
    for arguments, message in [
        ([str(model), "--target", "abacus"], "no target 'abacus'"),
        ([str(model), "--mcpu", "abacus"], "LLVM knows no processor 'abacus'"),
        ([str(tmp_path)], "has no mlc-chat-config.json"),
    ]:
        assert main(["compile", *arguments, "-o", str(output)]) == 2
        assert f"gecko-mlc: error: {message}" in capsys.readouterr().err.replace(f"{tmp_path} ", "")
        assert not output.exists()


def test_cache_compiles_once_for_each_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled = []

    def compile_nothing(config, quantization, target, output) -> None:
        compiled.append((config, quantization, target.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"a library")

    monkeypatch.setattr(compiler, "compile_library", compile_nothing)
    lines: list[str] = []
    first = cache.cached_library(model, on_progress=lines.append)
    assert first.parent == tmp_path / "cache" / "gecko-mlc" and first.is_file()
    assert len(lines) == 2 and lines[0].startswith("compiling for")
    assert cache.cached_library(model, on_progress=lines.append) == first
    assert len(lines) == 2 and compiled == [(CONFIG, "q0f32", "cpu")]

    libraries = {first}
    path = model / "mlc-chat-config.json"
    values = json.loads(path.read_text())
    for change in (
        {"quantization": "q0bf16"},
        {"model_config": dataclasses.replace(CONFIG, norm_eps=1e-6).to_dict()},
    ):
        path.write_text(json.dumps({**values, **change}))
        libraries.add(cache.cached_library(model))
    path.write_text(json.dumps(values))
    monkeypatch.setattr(compiler, "versions", lambda: {"tvm": "another"})
    libraries.add(cache.cached_library(model))
    assert len(libraries) == len(compiled) == 4

    def absent() -> None:
        raise metal.MetalError("no Metal here")

    # A device that is not there is told before anything is compiled for it.
    monkeypatch.setattr(metal, "load_runtime", absent)
    with pytest.raises(metal.MetalError, match="no Metal here"):
        cache.cached_library(model, target="metal")
    assert len(compiled) == 4


@pytest.mark.parametrize(
    ("device", "gpu", "target"),
    [
        ("cuda", (9, 0), "cuda-sm90a"),
        ("cuda:1", (8, 9), "cuda"),
        ("cpu-x86-64-v3", None, "cpu-x86-64-v3"),
    ],
)
def test_cache_compiles_for_the_device(
    device: str, gpu: tuple[int, int] | None, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.cuda, "load_runtime", lambda: None)
    monkeypatch.setattr(cache.cuda, "capability", lambda index: gpu)
    assert cache.target_name(device) == target
