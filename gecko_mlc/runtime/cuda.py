"""CUDA on this machine: the driver, TVM's runtime for it, what a GPU can run, cuBLASLt.

Nothing here needs a compiler: NVIDIA's driver and its runtime library (``libcudart``) are enough.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import tvm

from gecko_mlc.runtime import native

# The major version TVM's runtime library is linked to, and cuBLASLt's functions are taken from.
_MAJOR = 13
# Bytes that a product may use besides its operands.
_CUBLASLT_WORKSPACE = 32 << 20


class CudaError(ValueError):
    """CUDA that cannot be used here; the message says what is missing."""


@functools.cache
def load_runtime() -> None:
    """Make TVM's device ``cuda`` exist. Raises CudaError without a driver, its runtime or a GPU."""
    try:
        ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise CudaError(f"found no NVIDIA driver ({error}); every machine has device cpu") from None
    cudart = _open(f"libcudart.so.{_MAJOR}", "nvidia-cuda-runtime")
    _check_devices(cudart)
    runtime = Path(tvm.__file__).parent / "lib/libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise CudaError(f"TVM's CUDA runtime does not load: {error}") from error


def capability(index: int) -> tuple[int, int]:
    """The compute capability of a GPU: (9, 0) for an H100 or H200."""
    major, minor = tvm.runtime.device("cuda", index).compute_version.split(".")
    return int(major), int(minor)


def can_run(machine_code: Sequence[str], ptx: str | None, gpu: tuple[int, int]) -> bool:
    """Whether code for these architectures (sm_80, ..., compute_90) runs on that capability.

    Machine code runs on its generation from its own step on, architecture-specific code (sm_90a)
    on that one capability, and PTX on everything from its capability on.
    """

    def runs(architecture: str) -> bool:
        digits = architecture.partition("_")[2]
        wanted = int(digits.rstrip("a")[:-1]), int(digits.rstrip("a")[-1])
        if digits.endswith("a"):
            return gpu == wanted
        return gpu[0] == wanted[0] and gpu[1] >= wanted[1]

    if ptx is not None:
        digits = ptx.partition("_")[2]
        if gpu >= (int(digits[:-1]), int(digits[-1])):
            return True
    return any(map(runs, machine_code))


@functools.cache
def open_cublaslt(index: int) -> bool:
    """Make products by cuBLASLt possible on a GPU; False where it or our native part is missing.

    The products of one GPU share a workspace: they belong on one stream.
    """
    try:
        open_library = native.function("cublaslt.open")
    except OSError:
        return False
    name = f"libcublasLt.so.{_MAJOR}"
    for path in _candidates(name):
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        workspace = tvm.runtime.empty(
            (_CUBLASLT_WORKSPACE,), "uint8", tvm.runtime.device("cuda", index)
        )
        open_library(path, workspace)
        return True
    return False


def nvidia_packages() -> list[Path]:
    """The folders that NVIDIA's Python packages share; each release has its own in there."""
    packages = importlib.util.find_spec("nvidia")
    return [Path(folder) for folder in (packages and packages.submodule_search_locations) or ()]


def _check_devices(cudart: ctypes.CDLL) -> None:
    count = ctypes.c_int()
    status = cudart.cudaGetDeviceCount(ctypes.byref(count))
    if status:
        cudart.cudaGetErrorString.restype = ctypes.c_char_p
        raise CudaError(f"no CUDA device can be used: {cudart.cudaGetErrorString(status).decode()}")


def _open(name: str, package: str) -> ctypes.CDLL:
    for path in _candidates(name):
        try:
            return ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise CudaError(
        f"found no {name}, which TVM needs on a GPU: pip install '{package}=={_MAJOR}.*'"
    )


def _candidates(name: str) -> Iterator[str]:
    """Where a library of the CUDA toolkit may be: loaded or in the loader's folders, in NVIDIA's
    Python packages (PyTorch brings them too), in a toolkit."""
    yield name
    for folder in nvidia_packages():
        for path in folder.glob(f"*/lib/{name}"):
            yield str(path)
    for toolkit in filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda")):
        yield f"{toolkit}/lib64/{name}"
