"""The package's native library (``gecko_mlc/native``): global functions named ``gecko_mlc.*``."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import tvm_ffi

import gecko_mlc

_NAME = "libgecko_mlc.so"


@functools.cache
def load() -> None:
    """Register the library's functions with tvm_ffi. Raises OSError where it is not there."""
    folders = [Path(folder) / "lib" for folder in gecko_mlc.__path__]
    # A checkout that was not installed has it where CMake was told to build.
    folders.append(Path(__file__).parents[2] / "build/native")
    found = [folder / _NAME for folder in folders if (folder / _NAME).is_file()]
    if not found:
        raise FileNotFoundError(
            f"found no {_NAME} in {', '.join(map(str, folders))}: install gecko-mlc (pip install .)"
        )
    ctypes.CDLL(str(found[0]))


def function(name: str):
    """The function ``gecko_mlc.<name>`` of the library."""
    load()
    return tvm_ffi.get_global_func(f"gecko_mlc.{name}")
