"""A step's attention with its keys split over CTAs, against the float64 operations."""

from __future__ import annotations

import numpy as np
import pytest
from attention_reference import (
    EPS,
    LAYERS,
    SLOTS,
    Rings,
    Shape,
    assert_stored,
    gated_reference,
    inputs_reference,
)
from kernel_runner import DTYPES, poisoned

from gpu.gpu_runner import GpuKernel
from gpu.gpu_shapes import SHAPES
from gpu.gpu_units import LARGE, LEAST
from tir_kernels.gpu.attention.combine import attention_combine
from tir_kernels.gpu.attention.decode import attention_step
from tir_kernels.gpu.attention.shares import Shares
from tir_kernels.gpu.unit import SM80, SM90A, GpuUnit

IDLE = -1


class Decode:
    """Both kernels for one batch size, launched the plain way or while their inputs are made."""

    def __init__(self, shape: Shape, batch: int, unit: GpuUnit) -> None:
        sizes = shape.heads, shape.z_head, shape.v_head
        self.shape, self.batch = shape, batch
        self.rows = Shares(batch, *sizes, shape.chunk, shape.dtype, unit).rows
        self.step = GpuKernel(
            attention_step(
                batch, *sizes, shape.rope_heads, shape.model_dim, shape.chunk, EPS, LAYERS,
                shape.dtype, unit,
            )
        )  # fmt: skip
        self.combine = GpuKernel(
            attention_combine(batch, *sizes, shape.model_dim, shape.chunk, shape.dtype, unit)
        )

    def __call__(self, projected, v, gamma, beta, slots, position, rings, memory):
        """The rings as the step leaves them, and the gated rows."""
        shape = self.shape
        *found, partial, scale = self.step(
            projected, v, gamma, beta, shape.rope, np.array(slots, np.int32), position,
            *rings.all(), memory, 1, poisoned(self.batch, shape.heads, self.rows, shape.v_head),
            poisoned(self.batch, shape.heads, self.rows, 2), writes=(7, 8, 9, -2, -1),
        )  # fmt: skip
        gated = np.full((self.batch, shape.value_dim), np.nan, DTYPES[shape.dtype])
        return found, self.combine(partial, scale, projected, gated)


# The last: so many keys for a CTA that its threads take them in several rounds.
SHAPES = {**SHAPES, "many keys": Shape(8, 256, 8, 300, 8, 1, "float16")}
CASES = {
    "many keys": [(4, LEAST)],
    "bfloat16": [(1, SM80), (4, SM90A)],
    "wide": [(1, SM80), (4, SM90A), (1, LARGE)],
    "five heads": [(1, SM80), (4, LEAST)],
    "odd": [(4, SM90A), (1, LEAST)],
    "large heads": [(1, SM80), (4, LARGE)],
}


@pytest.fixture(
    scope="module",
    params=[(SHAPES[name], *how) for name, several in CASES.items() for how in several],
    ids=[
        f"{name}, {batch}, {unit.tensor_cores or unit.threads}"
        for name, several in CASES.items()
        for batch, unit in several
    ],
)
def decode(request: pytest.FixtureRequest) -> Decode:
    return Decode(*request.param)


# Scores of a few units, and of hundreds, where exp of anything but a difference overflows.
@pytest.mark.parametrize("spread", [1.0, 16.0], ids=["usual scores", "large scores"])
def test_attention_step(decode: Decode, spread: float) -> None:
    shape = decode.shape
    rng = np.random.default_rng(shape.heads + 10)
    chunk = shape.chunk
    # The first token, an odd chunk, a chunk's first and last position.
    position = np.array([0, 3 * chunk + 5, 2 * chunk, 5 * chunk - 1], np.int32)
    gamma, beta = rng.standard_normal((2, 4, shape.z_dim), dtype=np.float32)
    gamma[:2] *= np.sqrt(spread / np.sqrt(shape.z_head))
    matrix = rng.standard_normal(
        (LAYERS, SLOTS, shape.heads, shape.z_head, shape.v_head), dtype=np.float32
    )
    kept = matrix.copy()
    # Before the third chunk nothing is kept, and nothing is read.
    matrix[:, position < 2 * chunk], kept[:, position < 2 * chunk] = np.nan, 0.0
    batches = [[0], [1], [2], [3]] if decode.batch == 1 else [[2, 1, 0, 3], [IDLE, 3, IDLE, IDLE]]
    for slots in batches:
        rings = Rings(rng, shape, 1.0)
        active = [b for b, slot in enumerate(slots) if slot != IDLE]
        used = [slots[b] for b in active]
        times = position[used]
        # Rows of the future are garbage.
        for ring in rings.all():
            for slot, time in zip(used, times, strict=True):
                if time < chunk:
                    ring[:, slot, time:] = np.nan
        projected = rng.standard_normal((decode.batch, shape.columns), dtype=np.float32)
        v = rng.standard_normal((decode.batch, shape.value_dim), dtype=np.float32)
        found, gated = decode(projected, v, gamma, beta, slots, position, rings, matrix)

        wanted = inputs_reference(projected[active, : shape.z_dim], gamma, beta, times, shape)
        written = wanted.key, v[active].astype(np.float64), wanted.memory_key
        rows = 1, used, times % (2 * chunk)
        for ring, initial, stored in zip(found, rings.all(), written, strict=True):
            assert_stored(ring[rows], stored, shape.dtype, 3e-6)
            initial[rows] = ring[rows]
            assert ring.tobytes() == initial.tobytes(), "a row that is not this step's was changed"
        queries = np.stack([wanted.own, wanted.before, wanted.features], 1)
        attended = gated_reference(shape, rings, kept, 1, used, times, queries, projected[active])
        # A large score's error is softmax's own.
        tolerance = 4e-6 if spread == 1.0 else 1e-4
        assert_stored(gated[active], attended, shape.dtype, tolerance)
