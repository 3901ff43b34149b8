"""Vulkan on this machine: device ``vulkan`` for TVM, what its devices can do.

TVM's wheel has no Vulkan. Ours is ``gecko_mlc/native/vulkan``, which opens libvulkan itself and
needs nothing else.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
import tvm_ffi

from gecko_mlc.runtime import native


class VulkanError(ValueError):
    """Vulkan that cannot be used here; the message says what was found and what to install."""


@functools.cache
def load_runtime() -> None:
    """Make TVM's device ``vulkan`` exist. Raises VulkanError without a driver or a device."""
    _load_library()
    if tvm_ffi.get_global_func("gecko_mlc.vulkan.count")() == 0:
        describe(0)  # says why


def describe(index: int = 0) -> dict[str, Any]:
    """What device ``vulkan:index`` is and can do. Raises VulkanError for one that is not there.

    name, driver, vulkan (its version), kind (discrete, integrated, virtual, cpu, other)
    threads          most threads in a workgroup; ``workgroup`` for each dimension
    workgroups       most workgroups in each dimension
    shared           bytes of shared memory in a workgroup
    push_constants   bytes
    largest_tensor   bytes
    subgroup         threads in a subgroup, if no kernel asks; ``subgroup_min`` and ``subgroup_max``
                     can be asked for where ``subgroup_choice``
    subgroup_operations  VkSubgroupFeatureFlags that compute shaders have
    float16, storage16, int16, int64, bfloat16, cooperative_matrix, bfloat16_cooperative_matrix
                     whether kernels have them (storage16: as numbers in memory)
    cooperative_matrices  what products: m, n, k, the types a, b, c and result, scope, saturating
    """
    _load_library()
    try:
        found = tvm_ffi.get_global_func("gecko_mlc.vulkan.describe")(index)
    except RuntimeError as error:
        raise VulkanError(_message(error)) from None
    return _plain(found)


def memory(index: int = 0) -> dict[str, dict[str, int]]:
    """Memory of a device in use: for tensors, staging and arguments each the blocks that the driver
    gave, their bytes ``reserved``, the bytes ``used`` of these and the number of allocations."""
    load_runtime()
    return _plain(tvm_ffi.get_global_func("gecko_mlc.vulkan.memory")(index))


def host_tensor(index: int, shape: tuple[int, ...], dtype: str) -> tvm.runtime.Tensor:
    """A tensor of the host that device ``vulkan:index`` copies to and from by itself.

    Such copies do not wait: whoever touches the tensor knows when they are over.
    """
    load_runtime()
    make = tvm_ffi.get_global_func("gecko_mlc.vulkan.host_tensor")
    return make(index, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype))


class TimestampTimer:
    """The device's own times around every kernel (see ``gecko_mlc.bench.kernel_clock.Timer``).

    What a pair of them with nothing between takes is subtracted.
    """

    def __init__(self, index: int) -> None:
        load_runtime()
        self._index = index
        self._record = tvm_ffi.get_global_func("gecko_mlc.vulkan.timestamp")
        self._nanoseconds = tvm_ffi.get_global_func("gecko_mlc.vulkan.nanoseconds")
        self._times: list[Any] = []

    def begin(self) -> None:
        self._times = []
        self.start()
        self.stop()

    def start(self) -> None:
        self._times.append(self._record(self._index))

    def stop(self) -> None:
        self._times.append(self._record(self._index))

    def finish(self) -> list[float]:
        pairs = zip(self._times[::2], self._times[1::2], strict=True)
        empty, *seconds = (self._nanoseconds(start, stop) / 1e9 for start, stop in pairs)
        self._times = []
        return [max(time - empty, 0.0) for time in seconds]


def _load_library() -> None:
    try:
        native.load("gecko_mlc_vulkan")
    except OSError as error:
        raise VulkanError(
            f"gecko-mlc was installed without Vulkan, which takes its headers "
            f"(apt-get install libvulkan-dev): {error}"
        ) from error


def _message(error: RuntimeError) -> str:
    """The text of an error without where in the library it arose."""
    return str(error.args[0]) if error.args else str(error)


def _plain(value):
    if isinstance(value, tvm_ffi.Map):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tvm_ffi.Array):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, str) else value
