"""The GPUs that kernels are tested for: NVIDIA since sm_80, the least there is, a large one, and a
large one with cooperative matrices.
"""

from __future__ import annotations

import pytest

from tir_kernels.gpu.unit import SM80, GpuUnit

LEAST = GpuUnit(None, threads=128, shared=16 * 1024)
LARGE = GpuUnit(None, threads=1024, shared=48 * 1024)

COOPERATIVE = GpuUnit("cooperative", threads=1024, shared=48 * 1024)

FEW = {"sm_80": SM80, "least": LEAST}
UNITS = {**FEW, "large": LARGE, "cooperative": COOPERATIVE}


def with_units(cases: dict, on_few: tuple[str, ...] = ()) -> list:
    """Parameters (case, unit): each of ``cases`` with every unit; with few of them those cases
    whose kernels use no tensor cores anywhere, and so are the same on all larger units."""
    return [
        pytest.param((case, unit), id=f"{name}, {kind}")
        for name, case in cases.items()
        for kind, unit in (FEW if name in on_few else UNITS).items()
    ]
