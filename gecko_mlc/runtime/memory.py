"""Where parameters and state live on a device."""

from __future__ import annotations

import ctypes
import math

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi

from gecko_mlc.runtime import vulkan

_HUGE_PAGE = 2 << 20
_BLOCK = 64 << 20
_ALIGNMENT = 64
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TensorMemory:
    """Allocates tensors on a device that live as long as the engine.

    On a CPU they follow one another in blocks that start on a huge page: a decode step reads all
    of them, and with pages of 4 KiB it spends a tenth of its time on translating addresses. NumPy
    asks the system for huge pages; where the system has none to give, the memory is as any other.
    """

    def __init__(self, device) -> None:
        self._device = device
        self._on_host = device.dlpack_device_type() == tvm.runtime.cpu().dlpack_device_type()
        self._block = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: str) -> tvm.runtime.Tensor:
        """An uninitialised tensor."""
        if not self._on_host:
            return tvm.runtime.empty(shape, dtype, self._device)
        # NumPy and DLPack agree on no bfloat16: its bits pass as integers.
        plain = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        count = math.prod(shape)
        tensor = tvm.runtime.from_dlpack(self._take(count * plain.itemsize).view(plain))
        return tensor._create_view(shape, dtype)

    def hold(self, values: np.ndarray) -> tvm.runtime.Tensor:
        """A small tensor with these contents, such as a step's tokens."""
        if not self._on_host or values.dtype == _BFLOAT16:
            return tvm.runtime.tensor(values, self._device)
        # A tenth of the time that tvm.runtime.tensor takes.
        array = _aligned(values.nbytes, _ALIGNMENT).view(values.dtype).reshape(values.shape)
        array[...] = values
        return tvm.runtime.from_dlpack(array)

    def keep(self, tensor: tvm.runtime.Tensor) -> tvm.runtime.Tensor:
        """A copy of ``tensor``."""
        copy = self.empty(tuple(tensor.shape), str(tensor.dtype))
        tensor.copyto(copy)
        return copy

    def upload(self, array: np.ndarray) -> tvm.runtime.Tensor:
        """A tensor with the contents of ``array``, which is read once, straight from its place."""
        if array.dtype != _BFLOAT16:
            return self.empty(array.shape, str(array.dtype)).copyfrom(array)
        tensor = self.empty(array.shape, "bfloat16")
        # Through its bits: TVM would convert a bfloat16 array by way of two copies.
        tensor._create_view(array.shape, "uint16").copyfrom(array.view(np.uint16))
        return tensor

    def _take(self, nbytes: int) -> np.ndarray:
        reserved = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        if len(self._block) < reserved:
            self._block = _aligned(max(reserved, _BLOCK), _HUGE_PAGE)
        taken, self._block = self._block[:nbytes], self._block[reserved:]
        return taken


class Staging:
    """Host memory that a CUDA or Vulkan device reaches, for copies that do not wait.

    ``host`` is a NumPy view of it. What a copy in flight reads or writes is not to be touched:
    the caller knows when the copy is over. TVM's Metal runtime has no such memory: it keeps a copy
    of what is sent, and waits for what it receives.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device) -> None:
        kind = device.dlpack_device_type()
        if kind == tvm_ffi.DLDeviceType.kDLVulkan:
            self._tensor = vulkan.host_tensor(device.index, shape, dtype)
        elif kind == tvm_ffi.DLDeviceType.kDLMetal:
            self._tensor = tvm.runtime.empty(shape, dtype, tvm.runtime.cpu())
        else:
            locked = tvm.runtime.device(tvm_ffi.DLDeviceType.kDLCUDAHost, device.index)
            self._tensor = tvm.runtime.empty(shape, dtype, locked)
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * nbytes).from_address(self._tensor.data_ptr())
        self.host = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def send(self, target: tvm.runtime.Tensor) -> None:
        """Start copying ``host`` to ``target``."""
        self._tensor.copyto(target)

    def receive(self, source: tvm.runtime.Tensor) -> None:
        """Start copying ``source`` to ``host``."""
        source.copyto(self._tensor)


def _aligned(nbytes: int, alignment: int) -> np.ndarray:
    memory = np.empty(nbytes + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + nbytes]
