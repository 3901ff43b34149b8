"""One kernel on the emulated Metal device."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

import metal_emulator
from gecko_mlc.compile.metal import PIPELINE


class DeviceKernel:
    """A device function (TIRx, with ``T.device_entry()``), compiled to MSL and run as such.

    ``function`` takes tensors of the device, a call copies arrays there and back.
    """

    def __init__(self, function) -> None:
        metal_emulator.install()
        target = metal_emulator.TARGET
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        with target:
            compiled = tvm.compile(module, target=target, tir_pipeline=PIPELINE)
        metal_emulator.runnable(compiled.mod)
        self.function = compiled["main"]

    def __call__(self, *arguments: Any, order: str = "forward") -> list[np.ndarray]:
        """All arrays among the arguments as a run with its threads in this order leaves them."""
        device = tvm.runtime.device("metal", 0)
        given = [
            tvm.runtime.tensor(argument, device) if isinstance(argument, np.ndarray) else argument
            for argument in arguments
        ]
        with metal_emulator.thread_order(order):
            self.function(*given)
        return [argument.numpy() for argument in given if isinstance(argument, tvm.runtime.Tensor)]
