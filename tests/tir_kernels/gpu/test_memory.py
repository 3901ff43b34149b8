"""The memory's update at the end of a chunk, against the float64 operations."""

from __future__ import annotations

import numpy as np
import pytest
from attention_reference import LAYERS, SLOTS, Rings, Shape, commit_reference
from kernel_runner import DTYPES, assert_near, poisoned

from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import with_units
from tir_kernels.gpu import memory
from tir_kernels.gpu.unit import GpuUnit

IDLE = -1
SHAPES = {
    "tensor cores": Shape(2, 64, 136, 64, 8, 2, "bfloat16"),
    "wide heads": Shape(1, 160, 264, 32, 8, 1, "float16"),
    "registers": Shape(5, 24, 26, 48, 8, 2, "float32"),
    "odd": Shape(3, 7, 13, 24, 12, 0, "bfloat16"),
}


class Commit:
    """The four kernels of one layer's update."""

    def __init__(self, shape: Shape, unit: GpuUnit) -> None:
        self.shape = shape
        heads, z_head, v_head, chunk = shape.heads, shape.z_head, shape.v_head, shape.chunk
        whole = heads, z_head, v_head, chunk, LAYERS, shape.dtype, unit
        self.levels = GpuKernel(
            memory.memory_levels(heads, z_head, chunk, LAYERS, shape.dtype, unit)
        )
        self.weights = GpuKernel(memory.memory_weights(*whole))
        self.overlap = GpuKernel(memory.memory_overlap(heads, z_head, chunk, shape.dtype, unit))
        self.update = GpuKernel(memory.memory_update(*whole))

    def __call__(self, slots, position, rings, matrix, log_norm, layer):
        shape, batch = self.shape, len(slots)

        def scratch(*sizes: int) -> np.ndarray:
            return np.full((batch, shape.heads, *sizes), np.nan, DTYPES[shape.dtype])

        zh, chunk = shape.z_head, shape.chunk
        norm, levels = self.levels(
            slots, position, rings.memory_keys, log_norm, layer,
            poisoned(batch, 3, shape.z_dim), writes=(3, 5),
        )  # fmt: skip
        weights, features, before = self.weights(
            slots, position, rings.memory_keys, matrix, levels, layer, scratch(zh, chunk),
            scratch(chunk, zh), scratch(zh, shape.v_head), writes=(6, 7, 8),
        )  # fmt: skip
        overlap = self.overlap(slots, weights, features, scratch(zh, zh))
        after = self.update(
            slots, position, weights, overlap, rings.values, before, levels, matrix, layer,
            writes=(7,),
        )  # fmt: skip
        return after, norm


@pytest.fixture(scope="module", params=with_units(SHAPES, on_few=("registers", "odd")))
def commit(request: pytest.FixtureRequest) -> Commit:
    return Commit(*request.param)


@pytest.mark.parametrize("level", [-np.inf, -3.0, 4.0, 200.0])
def test_memory_commit(commit: Commit, level: float) -> None:
    """``level`` is the log-normaliser before: nothing kept yet, little, as much, far more."""
    shape = commit.shape
    rng = np.random.default_rng(shape.heads + 20)
    chunk = shape.chunk
    position = np.array([2 * chunk, 7 * chunk, 4 * chunk, 3 * chunk], np.int32)
    rings = Rings(rng, shape, 2.0)
    matrix = rng.standard_normal(
        (LAYERS, SLOTS, shape.heads, shape.z_head, shape.v_head), dtype=np.float32
    )
    if level == -np.inf:
        matrix[:] = 0.0
    log_norm = rng.standard_normal(matrix.shape[:-1], dtype=np.float32) + np.float32(level)
    # A product's operands are rounded to the dtype: a few of its units, averaged over positions.
    tolerance = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1e-2}[shape.dtype]
    for slots in ([0], [3, IDLE, 2]):
        new_matrix, new_norm = commit(
            np.array(slots, np.int32), position, rings, matrix, log_norm, 1
        )
        for slot in filter(lambda slot: slot != IDLE, slots):
            wanted, wanted_norm = commit_reference(
                shape, rings, matrix, log_norm, 1, slot, position[slot]
            )
            assert_near(new_matrix[1, slot], wanted, tolerance)
            assert_near(new_norm[1, slot], wanted_norm, 1e-6)
            new_matrix[1, slot], new_norm[1, slot] = matrix[1, slot], log_norm[1, slot]
        assert new_matrix.tobytes() == matrix.tobytes(), "another slot or layer was changed"
        assert new_norm.tobytes() == log_norm.tobytes(), "another slot or layer was changed"
