"""What GPUs have in common as machines to measure on."""

from __future__ import annotations

from gecko_mlc.bench.host import Host
from gecko_mlc.runtime.engine import Engine
from tir_kernels.gpu import cost

DTYPES = {"q0f32": "float32", "q0f16": "float16", "q0bf16": "bfloat16"}


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
        self.name = self._device.device_name.rstrip("\0")

    def reference(self, config) -> None:
        """The reference is not measured here."""

    def reference_name(self) -> None:
        return None
