"""Compiling one CUDA kernel by itself and calling it with NumPy arrays, on the emulated device."""

from __future__ import annotations

import cuda_emulator
import tvm
from kernel_runner import Kernel


class GpuKernel(Kernel):
    """A device function, run with its threads in one order and in the other.

    The results must not differ in a bit: where they do, threads meet in memory without a barrier.
    """

    def __init__(self, function, arch: str = "sm_80") -> None:
        cuda_emulator.install()
        target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with target:
            library = tvm.compile(module, target=target, tir_pipeline="tirx")
        self._on_device = library["main"]
        self._function = self._in_both_orders

    def _in_both_orders(self, *given) -> None:
        forward, reverse = (self._run(given, order) for order in ("forward", "reverse"))
        for index, (first, second) in enumerate(zip(forward, reverse, strict=True)):
            assert first.tobytes() == second.tobytes(), (
                f"argument {index} depends on the order of the threads: a barrier is missing"
            )
        for tensor, array in zip(filter(_is_tensor, given), forward, strict=True):
            tensor.copyfrom(array)

    def _run(self, given, order: str) -> list:
        """All tensors as the kernel leaves them."""
        device = tvm.cuda(0)
        arguments = [tvm.runtime.tensor(a.numpy(), device) if _is_tensor(a) else a for a in given]
        cuda_emulator.set_order(order)
        self._on_device(*arguments)
        device.sync()
        return [argument.numpy() for argument in arguments if _is_tensor(argument)]


def _is_tensor(argument) -> bool:
    return isinstance(argument, tvm.runtime.Tensor)
