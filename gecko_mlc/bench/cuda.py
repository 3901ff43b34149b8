"""A CUDA device as a machine to measure on."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import tvm_ffi

from gecko_mlc.bench import results
from gecko_mlc.bench.calls import CallClock
from gecko_mlc.bench.gpu import Gpu, Reader
from gecko_mlc.bench.host import Shapes
from gecko_mlc.bench.timing import Action, Effort, alternate
from gecko_mlc.runtime.engine import Engine

# Copies that keep the device busy for some ten milliseconds, while the host launches a step.
STALL_COPIES = 24
# Kernels in a graph that times one of them: enough to make its launch too short to matter.
GRAPH_NODES = 1024
# cudaStreamCaptureModeRelaxed
_RELAXED = 2
# The side of the square product that stands for the device's multiply rate.
_SQUARE = 8192


class EventTimer:
    """CUDA events around every kernel (see ``kernel_clock.Timer``).

    The device is kept busy at the beginning, so that it never waits for the host between two events
    of a kernel. What a pair of events with nothing between them takes is subtracted.
    """

    def __init__(self, copy: Action) -> None:
        self._copy = copy
        self._events: list[ctypes.c_void_p] = []
        self._recorded = 0

    def begin(self) -> None:
        self._recorded = 0
        for _ in range(STALL_COPIES):
            self._copy.run()
        self.start()
        self.stop()

    def start(self) -> None:
        self._record()

    def stop(self) -> None:
        self._record()

    def finish(self) -> list[float]:
        recorded = self._events[: self._recorded]
        _check(_cudart().cudaEventSynchronize(recorded[-1]))
        pairs = zip(recorded[::2], recorded[1::2], strict=True)
        empty, *seconds = (self._elapsed(start, stop) for start, stop in pairs)
        return [max(time - empty, 0.0) for time in seconds]

    def _record(self) -> None:
        if self._recorded == len(self._events):
            event = ctypes.c_void_p()
            _check(_cudart().cudaEventCreate(ctypes.byref(event)))
            self._events.append(event)
        _check(_cudart().cudaEventRecord(self._events[self._recorded], None))
        self._recorded += 1

    def _elapsed(self, start: ctypes.c_void_p, stop: ctypes.c_void_p) -> float:
        milliseconds = ctypes.c_float()
        _check(_cudart().cudaEventElapsedTime(ctypes.byref(milliseconds), start, stop))
        return milliseconds.value / 1e3


class Graph:
    """Calls captured as a CUDA graph."""

    def __init__(self, device, calls: Sequence[Callable[[], object]]) -> None:
        self._executable = ctypes.c_void_p()
        stream: int = device.create_raw_stream()
        graph = ctypes.c_void_p()
        _check(_cudart().cudaStreamBeginCapture(ctypes.c_void_p(stream), _RELAXED))
        with tvm_ffi.use_raw_stream(device, stream):
            for call in calls:
                call()
        _check(_cudart().cudaStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph)))
        device.free_raw_stream(stream)
        _check(_cudart().cudaGraphInstantiate(ctypes.byref(self._executable), graph, 0))
        _check(_cudart().cudaGraphDestroy(graph))

    def launch(self) -> None:
        _check(_cudart().cudaGraphLaunch(self._executable, None))

    def __del__(self) -> None:
        _cudart().cudaGraphExecDestroy(self._executable)


@functools.cache
def _cudart() -> ctypes.CDLL:
    """The runtime library that TVM has loaded."""
    library = ctypes.CDLL("libcudart.so.13")
    library.cudaGetErrorString.restype = ctypes.c_char_p
    library.cudaGraphInstantiate.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulonglong]
    return library


def _check(status: int) -> None:
    if status:
        raise RuntimeError(_cudart().cudaGetErrorString(status).decode())


class Cuda(Gpu):
    """The device of an engine, and PyTorch on it, if any (see ``host.Host``)."""

    def __init__(self, engine: Engine, torch: ModuleType | None, effort: Effort) -> None:
        super().__init__(engine)
        self._torch, self._effort = torch, effort
        if engine.cublaslt:
            self.products = {"library": False, "cuBLASLt": True}
        self.reader = Reader(self._device, torch, self._device.index, effort)

    def timer(self) -> EventTimer:
        return EventTimer(self.reader.copy)

    def limits(self, _shapes: Shapes, products: list[results.Product]) -> results.Limits:
        if self._torch is None:
            best = max(products, key=lambda product: product.rate)
            rate, by = best.rate, f"{best.name} of {best.by}"
        else:
            square = {"square": (_SQUARE, _SQUARE, _SQUARE, 1)}
            clock = self.torch_products(square)
            assert clock is not None
            alternate({"square": clock.action()}, self._effort)
            rate = 2 * _SQUARE**3 / clock.seconds()["square"]
            by = f"torch.matmul of {_SQUARE}^3"
        reader = self.reader
        return results.Limits(
            None, reader.bandwidth, reader.name, reader.copy_bandwidth, rate, f"{by}, {self._dtype}"
        )

    def torch_products(self, shapes: Shapes) -> CallClock | None:
        """torch.matmul on these shapes."""
        if self._torch is None:
            return None
        from gecko_mlc.bench.reference import multiplications

        device = self._torch.device("cuda", self._device.index)
        dtype = getattr(self._torch, self._dtype)
        return CallClock(multiplications(shapes, dtype, device), self.timer())

    def in_graph(self, calls: Sequence[Callable[[], object]]) -> tuple[Action, int]:
        """The calls one after the other in a CUDA graph, and how many times over."""
        times = -(-GRAPH_NODES // len(calls))
        graph = Graph(self._device, [*calls] * times)

        def run() -> None:
            graph.launch()
            self._device.sync()

        return Action(run), times
