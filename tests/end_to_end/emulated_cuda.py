"""CUDA libraries for the emulated device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cuda_emulator
import numpy as np
import pytest
from conftest import BATCHES

from gecko_mlc.checkpoint import convert, write_chat_config
from gecko_mlc.compile import build
from gecko_mlc.compile.library import compile_library
from gecko_mlc.compile.targets import resolve
from gecko_mlc.config import GeckoConfig
from relax_model.gpu import GpuGecko


def build_emulated(
    folder: Path,
    config: GeckoConfig,
    tensors: Mapping[str, np.ndarray],
    quantization: str,
    target: str = "cuda-sm80",
) -> tuple[Path, Path]:
    """A folder of converted weights, and a library for the emulated CUDA device."""
    cuda_emulator.install()
    library = folder / "library.so"
    convert(config, tensors, quantization, folder)
    write_chat_config(config, quantization, folder, "bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build, "compile_cuda", lambda source, **_options: cuda_emulator.compile_kernels(source)
        )
        patch.setattr(GpuGecko, "batches", BATCHES)
        compile_library(config, quantization, resolve(target), library)
    return folder, library
