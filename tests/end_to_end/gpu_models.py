"""Models compiled for GPUs, on devices that any machine has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cuda_emulator
import metal_emulator
import numpy as np
import pytest

from gecko_mlc.checkpoint import convert, write_chat_config
from gecko_mlc.compile import build
from gecko_mlc.compile.library import compile_library
from gecko_mlc.compile.targets import resolve
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import vulkan
from relax_model.gpu import GpuGecko

# Two sequences run without an idle row, three with one.
BATCHES = (1, 2, 4)


def build_emulated(
    folder: Path,
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    target: str = "cuda-sm80",
) -> tuple[Path, Path]:
    """A folder of converted weights, and a library for the emulated CUDA device."""
    cuda_emulator.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build, "compile_cuda", lambda source, **_options: cuda_emulator.compile_kernels(source)
        )
        return _build(folder, config, tensors, quantization, target)


def build_lavapipe(
    folder: Path,
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    target: str = "vulkan-lavapipe",
) -> tuple[Path, Path]:
    """A folder of converted weights, and a library for Mesa's Vulkan driver for CPUs."""
    found = vulkan.describe()
    assert "llvmpipe" in found["name"], f"Vulkan device 0 is {found['name']}, wanted llvmpipe"
    return _build(folder, config, tensors, quantization, target)


def build_metal(
    folder: Path,
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    target: str = "metal",
) -> tuple[Path, Path]:
    """A folder of converted weights, and a library for the emulated Metal device."""
    metal_emulator.install()
    return _build(folder, config, tensors, quantization, target)


def _build(
    folder: Path,
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    target: str,
) -> tuple[Path, Path]:
    library = folder / "library.so"
    convert(config, tensors, quantization, folder)
    write_chat_config(config, quantization, folder, "bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GpuGecko, "batches", BATCHES)
        compile_library(config, quantization, resolve(target), library)
    return folder, library
