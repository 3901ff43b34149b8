"""CUDA libraries for the emulated device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cuda_emulator
import numpy as np
import pytest
from conftest import make_model

from gecko_mlc.compile import build
from gecko_mlc.config import GeckoConfig


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build, "compile_cuda", lambda source, **_options: cuda_emulator.compile_kernels(source)
        )
        make_model(folder, library, config, tensors, quantization, target)
    return folder, library
