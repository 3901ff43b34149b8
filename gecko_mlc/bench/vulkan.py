"""A Vulkan device as a machine to measure on."""

from __future__ import annotations

import tvm

from gecko_mlc.bench import results
from gecko_mlc.bench.calls import CallClock
from gecko_mlc.bench.gpu import DTYPES, Gpu
from gecko_mlc.bench.host import Shapes
from gecko_mlc.bench.timing import Action, Effort, alternate
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.vulkan import TimestampTimer

# Bytes that a copy moves for the device's bandwidth, at most.
COPY_BYTES = 2 * 2**30


class Reader:
    """Moves ``bytes`` of the device's memory by a copy, half of them read."""

    name = "copy"

    def __init__(self, device, effort: Effort) -> None:
        # A device in the processor shares its memory with everything else.
        nbytes = min(COPY_BYTES, device.total_global_memory // 16)
        source, target = (tvm.runtime.empty((nbytes,), "uint8", device) for _ in range(2))

        def copy() -> None:
            source.copyto(target)
            device.sync()

        self.action, self.bytes = Action(copy), 2 * nbytes
        timing = alternate({"copy": self.action}, effort)["copy"]
        self.bandwidth = self.copy_bandwidth = self.bytes / timing.median


class Vulkan(Gpu):
    """The device of an engine (see ``host.Host``)."""

    def __init__(self, engine: Engine, effort: Effort) -> None:
        super().__init__(engine)
        self._dtype = DTYPES[engine.metadata["quantization"]]
        self.reader = Reader(self._device, effort)

    def timer(self) -> TimestampTimer:
        return TimestampTimer(self._device.index)

    def limits(self, _shapes: Shapes, products: list[results.Product]) -> results.Limits:
        """Nothing else multiplies here: the best product of the library stands for the limit."""
        best = max(products, key=lambda product: product.rate)
        reader = self.reader
        return results.Limits(
            None,
            reader.bandwidth,
            reader.name,
            reader.copy_bandwidth,
            best.rate,
            f"{best.name} of {best.by}, {self._dtype}",
        )

    def torch_products(self, _shapes: Shapes) -> CallClock | None:
        return None
