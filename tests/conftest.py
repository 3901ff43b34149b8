"""What tests share: golden data, and models that are converted and compiled once per session."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from gecko_mlc.checkpoint import convert, open_checkpoint, write_chat_config
from gecko_mlc.config import GeckoConfig

# Folder of converted weights with their configuration, and the library.
Model = tuple[Path, Path]
ModelBuilder = Callable[..., Model]

DEMO = Path(__file__).parents[1] / "tools/demo"
# Batch sizes of GPU libraries: two sequences run without an idle row, three with one.
BATCHES = (1, 2, 4)


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parent / "golden"


def make_model(
    folder: Path,
    library: Path,
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    target: str,
) -> None:
    """A folder of converted weights, and a library, a GPU's for steps of ``BATCHES`` alone."""
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.targets import resolve
    from relax_model.gpu import GpuGecko

    convert(config, tensors, quantization, folder)
    write_chat_config(config, quantization, folder, "bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GpuGecko, "batches", BATCHES)
        compile_library(config, quantization, resolve(target), library)


@pytest.fixture(scope="session")
def build_model(tmp_path_factory: pytest.TempPathFactory) -> ModelBuilder:
    """``build_model(name, config, tensors, quantization, target="cpu")`` -> (folder, library).

    The same name gives the same files, in every worker of a parallel session: whoever comes first
    makes them, behind a lock.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def build(
        name: str,
        config: GeckoConfig,
        tensors: Mapping[str, np.ndarray],
        quantization: str,
        target: str = "cpu",
    ) -> Model:
        folder = shared / "models" / name
        library = folder / "library.so"
        folder.mkdir(parents=True, exist_ok=True)
        with (shared / "models" / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not library.is_file():
                make_model(folder, library, config, tensors, quantization, target)
        return folder, library

    return build


def _checkpoint(name: str, golden: Path) -> tuple[GeckoConfig, Mapping[str, np.ndarray]]:
    """Of tiny, alt or demo."""
    if name == "demo":
        return open_checkpoint(DEMO)
    config = GeckoConfig.from_file(golden / f"config_{name}.json")
    return config, load_file(golden / f"weights_{name}.safetensors")


def _golden_model(name: str, golden: Path, build_model: ModelBuilder) -> Model:
    return build_model(name, *_checkpoint(name, golden), "q0f32")


@pytest.fixture(scope="session")
def tiny_model(golden: Path, build_model: ModelBuilder) -> Model:
    """The default architecture in small, with the golden weights, in float32."""
    return _golden_model("tiny", golden, build_model)


@pytest.fixture(scope="session")
def alt_model(golden: Path, build_model: ModelBuilder) -> Model:
    """The golden model with every switch of the architecture the other way."""
    return _golden_model("alt", golden, build_model)


@pytest.fixture(scope="session")
def lavapipe_model(golden: Path, build_model: ModelBuilder) -> Callable[[str, str], Model]:
    """``lavapipe_model(name, quantization)``: tiny, alt or demo for Mesa's driver for CPUs."""

    def build(name: str, quantization: str) -> Model:
        from gecko_mlc.runtime import vulkan

        found = vulkan.describe()["name"]
        assert "llvmpipe" in found, f"Vulkan device 0 is {found}, wanted llvmpipe"
        label = f"{name}_{quantization}_vulkan"
        return build_model(label, *_checkpoint(name, golden), quantization, "vulkan-lavapipe")

    return build


@pytest.fixture(scope="session")
def metal_model(golden: Path, build_model: ModelBuilder) -> Callable[[str, str], Model]:
    """``metal_model(name, quantization)``: tiny or alt for the emulated Metal device."""

    def build(name: str, quantization: str) -> Model:
        import metal_emulator

        metal_emulator.install()
        label = f"{name}_{quantization}_metal"
        return build_model(label, *_checkpoint(name, golden), quantization, "metal")

    return build
