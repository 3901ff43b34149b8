"""Vulkan on this machine: device ``vulkan`` for TVM, what its devices can do.

TVM's wheel has no Vulkan. Ours is ``gecko_mlc/native/vulkan``, which opens libvulkan itself and
needs nothing else. A TVM that was built with Vulkan keeps its own.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
import tvm_ffi

from gecko_mlc.runtime import native


class VulkanError(ValueError):
    """Vulkan that cannot be used here; the message says what was found and what to install."""


def load_runtime(index: int = 0) -> None:
    """Make TVM's device ``vulkan`` exist. Raises VulkanError without a driver or that device."""
    if _is_ours():
        describe(index)


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
    try:
        found = _function("describe")(index)
    except RuntimeError as error:
        raise VulkanError(_message(error)) from None
    return _plain(found)


def memory(index: int = 0) -> dict[str, dict[str, int]]:
    """Memory of a device in use: for tensors, staging and arguments each the blocks that the driver
    gave, their bytes ``reserved``, the bytes ``used`` of these and the number of allocations."""
    return _plain(_function("memory")(index))


def host_tensor(index: int, shape: tuple[int, ...], dtype: str) -> tvm.runtime.Tensor:
    """A tensor of the host that device ``vulkan:index`` copies to and from by itself.

    Such copies do not wait: whoever touches the tensor knows when they are over.
    """
    return _function("host_tensor")(index, tvm_ffi.Shape(shape), tvm_ffi.dtype(dtype))


class TimestampTimer:
    """The device's own times around every kernel (see ``gecko_mlc.bench.kernel_clock.Timer``).

    What a pair of them with nothing between takes is subtracted.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._record = _function("timestamp")
        self._nanoseconds = _function("nanoseconds")
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


@functools.cache
def _is_ours() -> bool:
    """Whether device ``vulkan`` is ours, which is loaded unless TVM has one."""
    if tvm_ffi.get_global_func("device_api.vulkan", allow_missing=True) is not None:
        return False
    try:
        native.load("gecko_mlc_vulkan")
    except OSError as error:
        raise VulkanError(
            "gecko-mlc was installed without Vulkan, which takes its headers "
            f"(apt-get install libvulkan-dev): {error}"
        ) from error
    return True


def _function(name: str):
    if not _is_ours():
        raise VulkanError("this TVM was built with Vulkan: its device has no such function")
    return tvm_ffi.get_global_func(f"gecko_mlc.vulkan.{name}")


def _message(error: RuntimeError) -> str:
    """The text of an error without where in the library it arose."""
    return str(error.args[0]) if error.args else str(error)


def _plain(value):
    if isinstance(value, tvm_ffi.Map):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tvm_ffi.Array):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, str) else value
