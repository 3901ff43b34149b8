"""One kernel on the emulated device."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

import cuda_emulator


class DeviceKernel:
    """A device function (TIRx, with ``T.device_entry()``), compiled for the emulated device.

    ``function`` takes tensors of the device, a call copies arrays there and back.
    """

    def __init__(self, function, arch: str) -> None:
        cuda_emulator.install()
        target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="llvm")
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with target:
            self.function = tvm.compile(module, target=target, tir_pipeline="tirx")["main"]

    def __call__(self, *arguments: Any, order: str = "forward") -> list[np.ndarray]:
        """All arrays among the arguments as a run with its threads in this order leaves them."""
        device = tvm.cuda(0)
        given = [
            tvm.runtime.tensor(argument, device) if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        ]
        with cuda_emulator.thread_order(order):
            self.function(*given)
            device.sync()
        return [argument.numpy() for argument in given if isinstance(argument, tvm.runtime.Tensor)]
