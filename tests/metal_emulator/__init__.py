"""A Metal device on the CPU, for tests of the generated kernels on machines that are no Mac."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import tvm
import tvm_ffi
from cuda_emulator import native_build

from metal_emulator.saved_module import SavedKernel, read_module
from metal_emulator.translate import translate

ORDERS = ("forward", "reverse", "shuffled")
TARGET = tvm.target.Target(
    {
        "kind": "metal",
        "thread_warp_size": 32,
        "max_num_threads": 256,
        "max_shared_memory_per_block": 32 << 10,
        "max_function_args": 31,
    },
    host="llvm",
)

_NATIVE = Path(__file__).parent / "native"
_SCHEDULER = Path(native_build.__file__).parent / "native"
_SOURCES = [
    _NATIVE / "device.cpp",
    _NATIVE / "module.cpp",
    _SCHEDULER / "dependent_launch.cpp",
    _SCHEDULER / "memory.cpp",
    _SCHEDULER / "scheduler.cpp",
]
_LIBRARY = "libmetal_emulator.so"
# The CUDA device's scheduler under another name: both devices may be in one process.
_OWN_NAMES = "-Demulator=metal_emulator"
# As free with numbers as TVM's runtime has Metal's compiler be, but for the flag that would also
# change how this process treats tiny numbers. A register that was not set holds a pattern. Array
# indices and the alignment of addresses are checked.
_KERNEL_OPTIONS = [
    _OWN_NAMES,
    "-O1",
    "-Wall",
    "-Werror",
    "-Wno-unused",
    "-Wno-attributes",
    "-Wno-literal-suffix",
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-fno-trapping-math",
    "-freciprocal-math",
    "-fno-math-errno",
    "-ftrivial-auto-var-init=pattern",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-fwrapv",
    "-fsanitize=alignment,bounds",
    "-fsanitize-undefined-trap-on-error",
]


@functools.cache
def install() -> None:
    """Makes ``tvm.runtime.device("metal", 0)`` the emulated device for the rest of the process,
    and libraries with Metal kernels loadable.
    """
    ctypes.CDLL(str(_build() / _LIBRARY), ctypes.RTLD_GLOBAL)
    tvm_ffi.register_global_func("ffi.Module.load_from_bytes.metal", load_module)


@contextlib.contextmanager
def thread_order(order: str) -> Iterator[None]:
    """In here, threads and threadgroups that can run go on in this order, one of ORDERS."""
    install()
    set_order = tvm_ffi.get_global_func("metal_emulator.set_order")
    set_order(ORDERS.index(order))
    try:
        yield
    finally:
        set_order(ORDERS.index("forward"))


def runnable(module) -> None:
    """Puts the emulated device's kernels in the place of those that ``module`` imports."""
    install()
    saved = tvm_ffi.get_global_func("metal_emulator.saved")
    imports = list(module.imports)
    module.clear_imports()
    for imported in imports:
        if imported.kind == "metal":
            imported = load_module(saved(imported))
        module.import_module(imported)


def load_module(saved: bytes):
    """A module of kind metal from the bytes in which a library keeps it."""
    return load_kernels(read_module(bytes(saved)))


def load_kernels(kernels: list[SavedKernel]):
    """A module of kind metal with these kernels."""
    install()
    source = "".join(f"// Function: {kernel.name}\n{kernel.source}" for kernel in kernels)
    return tvm_ffi.get_global_func("metal_emulator.load")(
        str(_compile(source)),
        [kernel.name for kernel in kernels],
        [kernel.types for kernel in kernels],
        [kernel.launch for kernel in kernels],
    )


def launched() -> set[str]:
    """Names of the kernels that were launched since this was last asked."""
    return set(tvm_ffi.get_global_func("metal_emulator.launched")())


@functools.cache
def _compile(source: str) -> Path:
    """A shared object of kernels; a process compiles the same text once."""
    folder = _build()
    library = Path(_scratch().name) / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
    linked = [f"-L{folder}", "-lmetal_emulator", f"-Wl,-rpath,{folder}"]
    command = [*_KERNEL_OPTIONS, "-shared", f"-I{folder}", "-x", "c++", "-", *linked]
    native_build.run([*command, "-o", str(library)], folder, translate(source))
    return library


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


@functools.cache
def _build() -> Path:
    """The folder of the device's library and the kernels' header, made once on a machine."""
    includes = [
        f"-I{Path(package.__file__).parent / 'include'}"
        for package in (tvm, tvm_ffi)
        if package.__file__ is not None
    ]
    options = [_OWN_NAMES, "-O2", "-shared", f"-I{_SCHEDULER}", f"-I{_NATIVE}", *includes]
    header = [*_KERNEL_OPTIONS, "-x", "c++-header", "metal_stdlib"]

    def make(folder: Path) -> None:
        sources = [str(source) for source in _SOURCES]
        native_build.run([*options, *sources, "-ldl", "-o", _LIBRARY], folder)
        # Each kernel includes the header; the first time it is read as precompiled.
        for file in _NATIVE.glob("metal_*"):
            shutil.copy(file, folder)
        native_build.run([*header, "-o", "metal_stdlib.gch"], folder)

    files = [*_NATIVE.iterdir(), *_SCHEDULER.iterdir()]
    return native_build.folder("metal-emulator", files, [*options, *header], make)
