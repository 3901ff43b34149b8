"""The processor as a machine to measure on."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from gecko_mlc.bench import results
from gecko_mlc.bench.calls import CallClock
from gecko_mlc.bench.kernel_clock import HostTimer
from gecko_mlc.bench.limits import Reader, numpy_multiply_rate, processor
from gecko_mlc.bench.timing import Effort
from gecko_mlc.config import GeckoConfig
from tir_kernels import cost

if TYPE_CHECKING:
    from gecko_mlc.bench.reference import Reference

Shapes = Mapping[str, tuple[int, int, int, int]]  # by operation: m, k, n and how many of them


class Host:
    """``threads`` threads of the processor, and PyTorch on it, if any.

    ``steps``: how many steps of decode are timed as one. ``products``: whose products there are to
    be measured, and whether cuBLASLt's.
    """

    steps = 1
    products = {"library": False}
    timer = HostTimer
    operation = staticmethod(cost.operation)
    forward_costs = decode_costs = staticmethod(cost.forward)
    commit_costs = staticmethod(cost.commit)
    # Kernels that are matrix products, and the products they are.
    multiplying = {name: name for name in cost.PRODUCTS}

    def __init__(self, threads: int, torch: ModuleType | None, effort: Effort) -> None:
        self._threads, self._torch, self._effort = threads, torch, effort
        self.name = processor()
        self.reader = Reader(threads, torch, effort)

    def limits(self, shapes: Shapes, _products: list[results.Product]) -> results.Limits:
        try:
            from gecko_mlc.bench.multiply_add import multiply_add_rate

            rate, by = multiply_add_rate(self._threads, self._effort), "multiply-adds on registers"
        except ImportError:  # the compiler is not installed
            plain = [(m, k, n) for m, k, n, _ in shapes.values()]
            rate, by = numpy_multiply_rate(plain, self._threads, self._effort), "numpy.matmul"
        reader = self.reader
        return results.Limits(
            self._threads, reader.bandwidth, reader.name, None, rate, f"{by}, float32"
        )

    def torch_products(self, shapes: Shapes) -> CallClock | None:
        """torch.matmul on these shapes."""
        if self._torch is None:
            return None
        from gecko_mlc.bench.reference import multiplications

        self._torch.set_num_threads(self._threads)
        cpu = self._torch.device("cpu")
        return CallClock(multiplications(shapes, self._torch.float32, cpu), HostTimer())

    def reference(self, config: GeckoConfig) -> Reference | None:
        if self._torch is None:
            return None
        from gecko_mlc.bench.reference import Reference

        return Reference(config, self._threads)

    def reference_name(self) -> str | None:
        return None if self._torch is None else f"PyTorch {self._torch.__version__}, float32"
