"""Compiling one CUDA kernel by itself and calling it with NumPy arrays, on the emulated device."""

from __future__ import annotations

import tvm
from cuda_emulator.device_kernel import DeviceKernel
from kernel_runner import Kernel


class GpuKernel(Kernel):
    """A device function, run with its threads in one order and in the other.

    The results must not differ in a bit: where they do, threads meet in memory without a barrier,
    or somebody reads what an asynchronous copy or product has not yet written.
    """

    def __init__(self, function, arch: str = "sm_80") -> None:
        self._on_device = DeviceKernel(function, arch)
        self._function = self._in_both_orders

    def _in_both_orders(self, *given) -> None:
        arguments = [argument.numpy() if _is_tensor(argument) else argument for argument in given]
        forward, reverse = (
            self._on_device(*arguments, order=order) for order in ("forward", "reverse")
        )
        tensors = filter(_is_tensor, given)
        for number, (tensor, one, other) in enumerate(zip(tensors, forward, reverse, strict=True)):
            assert one.tobytes() == other.tobytes(), (
                f"tensor {number} depends on the order of the threads"
            )
            tensor.copyfrom(one)


def _is_tensor(argument) -> bool:
    return isinstance(argument, tvm.runtime.Tensor)
