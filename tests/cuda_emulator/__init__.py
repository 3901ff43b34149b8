"""A CUDA device on the CPU, for tests of the generated kernels on machines without a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tvm
import tvm_ffi

from cuda_emulator import native_build
from cuda_emulator.translate import translate

ORDERS = ("forward", "reverse", "shuffled")

_NATIVE = Path(__file__).parent / "native"
_DRIVER = [
    "bulk_copy.cpp",
    "dependent_launch.cpp",
    "driver.cpp",
    "memory.cpp",
    "scheduler.cpp",
    "tensor_core.cpp",
]
# Kernels see their memory as whatever type suits them, and their integers wrap around. An index
# into an array of known size is checked.
_KERNEL_OPTIONS = [
    "-O1",
    "-w",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-fwrapv",
    "-fsanitize=bounds",
    "-fsanitize-undefined-trap-on-error",
]


def install() -> None:
    """Makes ``tvm.runtime.device("cuda", 0)`` the emulated device for the rest of the process.

    Skips the test if NVIDIA's libraries are in the process already, for a GPU or with PyTorch.
    """
    _driver()


@contextlib.contextmanager
def thread_order(order: str) -> Iterator[None]:
    """In here, threads and blocks that can run go on in this order, one of ORDERS."""
    driver = _driver()
    driver.emulator_set_order(ORDERS.index(order))
    try:
        yield
    finally:
        driver.emulator_set_order(ORDERS.index("forward"))


def set_capability(major: int, minor: int) -> None:
    """What GPU the device says it is; (8, 0) at first. It runs code for any."""
    _driver().emulator_set_capability(10 * major + minor)


def compile_kernels(source: str) -> bytes:
    """Machine code for the device, of CUDA source that TVM's code generator made."""
    folder = _build()
    with tempfile.TemporaryDirectory() as scratch:
        library = Path(scratch) / "kernels.so"
        native_build.run(
            [*_KERNEL_OPTIONS, "-shared", f"-I{folder}", "-x", "c++", "-", "-o", str(library)],
            folder,
            translate(source),
        )
        code = library.read_bytes()
    # What the driver loads: a tag, the size of a shared object, and the object.
    return b"GECKOEMU" + len(code).to_bytes(8, "little") + code


@functools.cache
def _driver() -> ctypes.CDLL:
    folder = _build()
    driver = ctypes.CDLL(str(folder / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(folder / "libcudart.so.13"), ctypes.RTLD_GLOBAL)
    libraries = Path(tvm.__file__).parent / "lib"
    ctypes.CDLL(str(libraries / "libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)
    device = tvm.runtime.device("cuda", 0)
    if not device.exist or "emulated" not in device.device_name:
        pytest.skip("TVM is bound to NVIDIA's CUDA libraries", allow_module_level=True)
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_kernels, override=True)
    return driver


@functools.cache
def _build() -> Path:
    """The folder of the libraries and the kernels' header, made once on a machine."""
    return native_build.folder("cuda-emulator", _NATIVE.iterdir(), _KERNEL_OPTIONS, _make)


def _make(folder: Path) -> None:
    run = native_build.run
    options = ["-O3", "-shared"]
    driver = [str(_NATIVE / file) for file in _DRIVER]
    run([*options, "-Wl,-soname,libcuda.so.1", *driver, "-ldl", "-o", "libcuda.so.1"], folder)
    script = f"-Wl,--version-script,{_NATIVE / 'runtime.version'}"
    runtime = [str(_NATIVE / "runtime.cpp"), "libcuda.so.1"]
    run(
        [*options, "-Wl,-soname,libcudart.so.13", script, *runtime, "-o", "libcudart.so.13"], folder
    )
    run([*_KERNEL_OPTIONS, str(_NATIVE / "ptx.h"), "-o", "ptx.h.gch"], folder)
