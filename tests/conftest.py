"""What tests share: golden data, and models that are converted and compiled once per session."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gecko_mlc.checkpoint import convert, write_chat_config
from gecko_mlc.config import GeckoConfig

# Folder of converted weights with their configuration, and the library.
Model = tuple[Path, Path]
ModelBuilder = Callable[[str, GeckoConfig, Mapping[str, np.ndarray], str], Model]


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def build_model(tmp_path_factory: pytest.TempPathFactory) -> ModelBuilder:
    """``build_model(name, config, tensors, quantization)`` -> (folder, library).

    The same name gives the same files, in every worker of a parallel session: whoever comes first
    makes them, behind a lock.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def build(
        name: str, config: GeckoConfig, tensors: Mapping[str, np.ndarray], quantization: str
    ) -> Model:
        from gecko_mlc.compile.library import compile_library
        from gecko_mlc.compile.targets import resolve

        folder = shared / "models" / name
        library = folder / "library.so"
        folder.mkdir(parents=True, exist_ok=True)
        with (shared / "models" / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.is_file():
                convert(config, tensors, quantization, folder)
                write_chat_config(config, quantization, folder, "bytes")
                compile_library(config, quantization, resolve("cpu"), library)
        return folder, library

    return build


def _golden_model(name: str, golden: Path, build_model: ModelBuilder) -> Model:
    config = GeckoConfig.from_file(golden / f"config_{name}.json")
    return build_model(name, config, load_file(golden / f"weights_{name}.safetensors"), "q0f32")


@pytest.fixture(scope="session")
def tiny_model(golden: Path, build_model: ModelBuilder) -> Model:
    """The default architecture in small, with the golden weights, in float32."""
    return _golden_model("tiny", golden, build_model)


@pytest.fixture(scope="session")
def alt_model(golden: Path, build_model: ModelBuilder) -> Model:
    """The golden model with every switch of the architecture the other way."""
    return _golden_model("alt", golden, build_model)
