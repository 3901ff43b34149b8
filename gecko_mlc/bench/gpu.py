"""What GPUs have in common as machines to measure on."""

from __future__ import annotations

from types import ModuleType

import tvm

from gecko_mlc.bench.host import Host
from gecko_mlc.bench.timing import Action, Effort, alternate
from gecko_mlc.checkpoint.mapping import QUANTIZATIONS
from gecko_mlc.runtime.engine import Engine
from tir_kernels.gpu import cost

# Bytes that a copy moves for the device's bandwidth, at most.
COPY_BYTES = 2 * 2**30


class Reader:
    """Moves ``bytes`` of the device's memory in the fastest way found; ``name`` says which.

    ``index`` is the device's number for PyTorch's CUDA.
    """

    def __init__(self, device, torch: ModuleType | None, index: int, effort: Effort) -> None:
        # A device in the processor shares its memory with everything else.
        nbytes = min(COPY_BYTES, device.total_global_memory // 16)
        source, target = (tvm.runtime.empty((nbytes,), "uint8", device) for _ in range(2))
        # Enqueued alone, for what only wants the device busy.
        self.copy = Action(lambda: source.copyto(target))

        def copy() -> None:
            source.copyto(target)
            device.sync()

        ways, moved = {"copy": Action(copy)}, {"copy": 2 * nbytes}
        if torch is not None:
            ones = torch.ones(nbytes // 4, device=f"cuda:{index}")

            def read() -> None:
                ones.sum()
                torch.cuda.synchronize()

            ways["torch.sum"], moved["torch.sum"] = Action(read), nbytes
        timings = alternate(ways, effort)
        rates = {name: moved[name] / timings[name].median for name in ways}
        self.copy_bandwidth = rates["copy"]
        self.name = max(rates, key=lambda name: rates[name])
        self.bandwidth, self.bytes = rates[self.name], moved[self.name]
        self.action = ways[self.name]


class Gpu:
    """The device of an engine (see ``host.Host``). The reference is not measured there."""

    steps = 16
    products = {"library": False}
    operation = staticmethod(cost.kernel)
    forward_costs, decode_costs = staticmethod(cost.prefill), staticmethod(cost.decode)
    commit_costs = staticmethod(cost.commit)
    multiplying = Host.multiplying | {"fc1_gated": "fc1"}

    def __init__(self, engine: Engine) -> None:
        self._device = engine.library.device
        self._dtype = QUANTIZATIONS[engine.metadata["quantization"]]
        self.name = self._device.device_name.rstrip("\0")

    def reference(self, config) -> None:
        """The reference is not measured here."""

    def reference_name(self) -> None:
        return None
