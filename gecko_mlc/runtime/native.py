"""The package's native libraries (``gecko_mlc/native``): global functions named ``gecko_mlc.*``."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import tvm_ffi

import gecko_mlc


@functools.cache
def load(name: str = "gecko_mlc") -> None:
    """Register the functions of lib``name``.so with tvm_ffi. Raises OSError without it."""
    file = f"lib{name}.so"
    folders = [Path(folder) / "lib" for folder in gecko_mlc.__path__]
    # A checkout that was not installed has it where CMake was told to build.
    folders.append(Path(__file__).parents[2] / "build/native")
    found = [folder / file for folder in folders if (folder / file).is_file()]
    if not found:
        raise FileNotFoundError(
            f"found no {file} in {', '.join(map(str, folders))}: install gecko-mlc (pip install .)"
        )
    ctypes.CDLL(str(found[0]))


def function(name: str):
    """The function ``gecko_mlc.<name>`` of the main library."""
    load()
    return tvm_ffi.get_global_func(f"gecko_mlc.{name}")
