"""Metal on this machine: TVM's wheel for macOS brings the runtime, in a library of its own."""

from __future__ import annotations

import ctypes
from pathlib import Path

import tvm
import tvm_ffi


class MetalError(ValueError):
    """No Metal here; the message says what was looked for."""


def load_runtime() -> None:
    """Make TVM's device ``metal`` exist. Raises MetalError without its runtime."""
    if tvm_ffi.get_global_func("device_api.metal", allow_missing=True) is not None:
        return
    runtime = Path(tvm.__file__).parent / "lib/libtvm_runtime_metal.dylib"
    if not runtime.is_file():
        raise MetalError(f"found no {runtime}: TVM's Metal runtime is in its package for macOS")
    ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
