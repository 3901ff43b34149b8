"""Memory of a process that runs a library and nothing else; of a device, what its functions take.

Run as ``python -m gecko_mlc.bench.memory`` by ``bench``, so that neither PyTorch nor the compiler
counts, on TVM's runtime-only libraries.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gecko_mlc.bench import child

if TYPE_CHECKING:
    from gecko_mlc.bench.compiled import Compiled

_STATUS = Path("/proc/self/status")


def measure(
    model: Path, library: Path, device: str, threads: int, prompt: int, positions: list[int]
) -> dict[str, Any]:
    """Bytes of the process, as ``results.Memory`` names them; ``at`` is a list here."""
    arguments = [str(model), str(library), device, threads, prompt, positions]
    return child.measure(__name__, arguments, {"TVM_USE_RUNTIME_LIB": "1"})


def workspace(compiled: Compiled, batches: list[int]) -> int:
    """Bytes of the device that the first prefill of a chunk and steps of ``batches`` take."""
    import numpy as np

    engine = compiled.engine
    before = _taken(engine.library.device)
    zeros = np.zeros(engine.config.chunk_size, np.int32)
    for action in [
        compiled.prefill(zeros, engine.cublaslt),
        *(compiled.generate(zeros[:2], 0, batch) for batch in batches),
    ]:
        action.prepare()
        action.run()
    return _taken(engine.library.device) - before


def _taken(device) -> int:
    """Bytes of the device's memory that are in use, up to a constant."""
    import tvm_ffi

    from gecko_mlc.runtime import vulkan

    if device.dlpack_device_type() == tvm_ffi.DLDeviceType.kDLVulkan:
        return sum(pool["reserved"] for pool in vulkan.memory(device.index).values())
    return -device.available_global_memory


def _status(key: str) -> int | None:
    """A line of /proc/self/status in bytes; getrusage's maximum would count the parent's too."""
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _run(arguments: list[Any]) -> dict[str, Any]:
    # The runtime's Python binding imports PyTorch wherever it is installed.
    sys.modules["torch"] = None  # type: ignore[assignment]
    import numpy as np

    from gecko_mlc.bench.compiled import Compiled
    from gecko_mlc.runtime.engine import Engine

    model, library, device, threads, prompt, positions = arguments
    imported, private = _status("VmRSS"), _status("RssAnon")
    engine = Engine(model, library, device=device, threads=threads)
    loaded = _status("VmRSS")
    compiled = Compiled(engine, slots=1)
    zeros = np.zeros(prompt, np.int32)
    for action in (compiled.prefill(zeros), compiled.decode(zeros[:1], 0)):
        action.prepare()
        action.run()
    at = []
    for position in positions:
        action = compiled.decode(zeros[:1], position)
        action.prepare()
        action.run()
        at.append(_status("RssAnon"))
    return {
        "imported": imported,
        "imported_private": private,
        "loaded": loaded,
        "at": at,
        "peak": _peak(),
    }


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(sys.argv[1]))))
