"""A Vulkan device as a machine to measure on."""

from __future__ import annotations

from types import ModuleType

from gecko_mlc.bench import results
from gecko_mlc.bench.calls import CallClock
from gecko_mlc.bench.gpu import Gpu, Reader
from gecko_mlc.bench.host import Shapes
from gecko_mlc.bench.timing import Effort
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.vulkan import TimestampTimer


class Vulkan(Gpu):
    """The device of an engine (see ``host.Host``).

    Vulkan's copies are slow on some GPUs: where PyTorch has the same GPU for CUDA, it reads too.
    """

    def __init__(self, engine: Engine, torch: ModuleType | None, effort: Effort) -> None:
        super().__init__(engine)
        names = [] if torch is None else _cuda_names(torch)
        same = names.index(self.name) if self.name in names else None
        self.reader = Reader(self._device, None if same is None else torch, same or 0, effort)

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


def _cuda_names(torch: ModuleType) -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
