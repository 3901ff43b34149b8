"""What the machine can do at most: read bandwidth and multiply rate, with a number of threads.

No single reader reaches the limit everywhere, so the limit is the best of several: NumPy's maximum
over a slice per thread, and, where PyTorch is, its sum. The buffer is far larger than any cache.
The multiply rate is that of multiply-adds on registers (``multiply_add``), or, without a compiler,
of NumPy's best float32 product of the model's own shapes.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np

from gecko_mlc.bench import child
from gecko_mlc.bench.timing import Action, Effort, alternate

READ_BYTES = 256 * 2**20
Shape = tuple[int, int, int]  # m, k, n


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as the system tells it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


class Reader:
    """Reads ``bytes`` of memory in the fastest way found here; ``name`` says which."""

    def __init__(self, threads: int, torch: ModuleType | None, effort: Effort) -> None:
        self.bytes = READ_BYTES
        buffer = np.ones(self.bytes // 4, np.float32)  # written, so that every page is there
        slices = np.array_split(buffer, threads)
        pool = ThreadPoolExecutor(threads)
        ways = {"numpy.max": Action(lambda: list(pool.map(np.max, slices)))}
        if torch is not None:
            ways["torch.sum"] = Action(torch.from_numpy(buffer).sum)
        timings = alternate(ways, effort)
        self.name = min(ways, key=lambda way: timings[way].median)
        self.bandwidth = self.bytes / timings[self.name].median  # bytes per second
        self.action = ways[self.name]


def numpy_multiply_rate(shapes: Sequence[Shape], threads: int, effort: Effort) -> float:
    """Operations per second of NumPy's best float32 product.

    In a process of its own: a BLAS library takes its number of threads from the environment, once.
    """
    names = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
    arguments = [shapes, effort.rounds, effort.seconds]
    return float(child.measure(__name__, arguments, {name: str(threads) for name in names}))


def _numpy_multiply_rate(shapes: Sequence[Shape], effort: Effort) -> float:
    generator = np.random.default_rng(0)
    best = 0.0
    for m, k, n in shapes:
        a = generator.standard_normal((m, k), np.float32)
        b = generator.standard_normal((n, k), np.float32)

        def multiply(a: np.ndarray = a, b: np.ndarray = b) -> np.ndarray:
            return a @ b.T

        seconds = alternate({"product": Action(multiply)}, effort)["product"].median
        best = max(best, 2 * m * k * n / seconds)
    return best


if __name__ == "__main__":
    given, rounds, seconds = json.loads(sys.argv[1])
    print(json.dumps(_numpy_multiply_rate(given, Effort(rounds, seconds))))
