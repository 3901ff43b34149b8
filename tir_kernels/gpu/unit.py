"""What a GPU offers to one CTA of a kernel: the limits that kernels are made for."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class GpuUnit:
    """``threads`` and ``shared`` bytes that a CTA may have, and what multiplies matrices for it.

    ``tensor_cores``: by PTX's wgmma (sm_90a) or mma (from sm_80), by cooperative matrices, or not
    at all. Without PTX's, kernels keep to what any GPU has. ``dependent_launch``: a step's kernels
    start while the one before still runs.
    """

    tensor_cores: Literal["wgmma", "mma", "cooperative"] | None
    threads: int
    shared: int
    dependent_launch: bool = False

    def __post_init__(self) -> None:
        if self.threads < 128 or self.shared < 16 * 1024:
            raise ValueError(
                f"a GPU unit of {self.threads} threads and {self.shared} bytes of shared memory; "
                "kernels need 128 threads and 16384 bytes at least"
            )

    @property
    def ptx(self) -> bool:
        """Whether kernels may use NVIDIA's own instructions."""
        return self.tensor_cores in ("wgmma", "mma")

    def room(self, threads: int) -> int:
        """Bytes of shared memory for a CTA of so many threads. Where lanes of a warp exchange
        values through shared memory, that takes a word of each thread."""
        return self.shared if self.ptx else self.shared - 4 * threads

    def cta(self, threads: int) -> int:
        """Threads of a CTA that would best have so many."""
        return min(threads, self.threads)


# Shared memory less 1 KiB that the system takes; of sm_80 and later, what the smallest have.
SM80 = GpuUnit("mma", threads=1024, shared=98 * 1024)
SM90A = GpuUnit("wgmma", threads=1024, shared=226 * 1024, dependent_launch=True)
