"""Attention's inputs, attention itself and the memory's update, against the float64 operations.

The state handed to a kernel has several layers and slots full of noise; only the rows that it has
to write may change.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from attention_reference import (
    EPS,
    LAYERS,
    SLOTS,
    Rings,
    Shape,
    assert_stored,
    commit_reference,
    gated_reference,
    inputs_reference,
)
from kernel_runner import Kernel, assert_near, poisoned

from tir_kernels import attention, attention_inputs, memory
from tir_kernels.vector_unit import AVX2, AVX512, NEON, PORTABLE, VectorUnit


@dataclasses.dataclass(frozen=True)
class CpuShape(Shape):
    unit: VectorUnit


SHAPES = {
    "regular": CpuShape(2, 32, 64, 64, 48, 2, "float32", AVX512),
    "five heads": CpuShape(5, 8, 26, 48, 40, 2, "float32", AVX512),
    "no rotary heads": CpuShape(3, 7, 13, 24, 12, 0, "float32", AVX2),
    "bfloat16": CpuShape(2, 12, 20, 40, 16, 1, "bfloat16", NEON),
    "float16": CpuShape(1, 6, 5, 10, 7, 1, "float16", PORTABLE),
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> CpuShape:
    return request.param


@pytest.fixture(scope="module")
def inputs_kernels(shape: CpuShape) -> dict[bool, Kernel]:
    """By ``batched``."""
    return {
        batched: Kernel(
            attention_inputs.attention_inputs(
                shape.heads, shape.z_head, shape.v_head, shape.rope_heads, shape.model_dim,
                shape.chunk, EPS, LAYERS, shape.dtype, batched, shape.unit,
            )
        )
        for batched in (False, True)
    }  # fmt: skip


@pytest.mark.parametrize("batched", [False, True])
def test_attention_inputs(
    shape: CpuShape, inputs_kernels: dict[bool, Kernel], batched: bool
) -> None:
    rng = np.random.default_rng(shape.heads)
    chunk = shape.chunk
    gamma = rng.standard_normal((4, shape.z_dim), dtype=np.float32)
    beta = rng.standard_normal((4, shape.z_dim), dtype=np.float32)
    position = np.array([0, 3 * chunk + 5, 2 * chunk, 5 * chunk - 1], np.int32)
    if batched:
        rows = [[1], [3, 0], [2, 1, 0, 3]]
    else:
        rows = [[0] * chunk, [0], [1] * (chunk - 5), [2] * 3, [3]]
    for slots in rows:
        m = len(slots)
        listed = np.array(slots if batched else slots[:1], np.int32)
        times = position[slots] + (0 if batched else np.arange(m))
        projected = rng.standard_normal((m, shape.columns), dtype=np.float32)
        value = rng.standard_normal((m, shape.value_dim), dtype=np.float32)
        rings = Rings(rng, shape)
        *found, queries = inputs_kernels[batched](
            projected, value, gamma, beta, shape.rope, listed, position, *rings.all(), 1,
            poisoned(m, 3, shape.z_dim), writes=(7, 8, 9, -1),
        )  # fmt: skip

        wanted = inputs_reference(projected[:, : shape.z_dim], gamma, beta, times, shape)
        assert_near(queries, np.stack([wanted.own, wanted.before, wanted.features], 1), 3e-6)

        written = wanted.key, value.astype(np.float64), wanted.memory_key
        for ring, initial, values in zip(found, rings.all(), written, strict=True):
            stored = ring[1, slots, times % (2 * chunk)]
            assert_stored(stored, values, shape.dtype, 3e-6)
            ring[1, slots, times % (2 * chunk)] = initial[1, slots, times % (2 * chunk)]
            assert ring.tobytes() == initial.tobytes(), "a row that is not this step's was changed"


@pytest.fixture(scope="module")
def attention_kernels(shape: CpuShape) -> dict[str, Kernel]:
    """Prefill, a decode step with a head in one piece, and one with its keys in three shares."""
    sizes = (
        shape.heads, shape.z_head, shape.v_head, shape.model_dim, shape.chunk, LAYERS, shape.dtype,
    )  # fmt: skip
    return {
        "prefill": Kernel(attention.attention_prefill(*sizes, shape.unit)),
        "decode": Kernel(attention.attention_decode(*sizes, 1, shape.unit)),
        "decode in shares": Kernel(attention.attention_decode(*sizes, 3, shape.unit)),
    }


# Scores of a few units, and of thousands, where exp of anything but a difference overflows.
@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["usual scores", "large scores"])
@pytest.mark.parametrize("form", ["prefill", "decode", "decode in shares"])
def test_attention(
    shape: CpuShape, attention_kernels: dict[str, Kernel], form: str, spread: float
) -> None:
    batched = form != "prefill"
    rng = np.random.default_rng(shape.heads + 10)
    chunk = shape.chunk
    position = np.array([0, 3 * chunk + 5, 2 * chunk, 5 * chunk - 1], np.int32)
    if batched:
        rows = [[0], [1], [2], [3, 0], [2, 1, 0, 3]]
    else:
        rows = [[0] * chunk, [0], [1] * (chunk - 5), [1] * 2, [2] * chunk, [2] * 3, [3]]
    rings = Rings(rng, shape, spread)
    matrix = rng.standard_normal(
        (LAYERS, SLOTS, shape.heads, shape.z_head, shape.v_head), dtype=np.float32
    )
    kept = matrix.copy()
    # Before the third chunk nothing is kept, and nothing is read.
    matrix[:, position < 2 * chunk], kept[:, position < 2 * chunk] = np.nan, 0.0
    for slots in rows:
        m = len(slots)
        listed = np.array(slots if batched else slots[:1], np.int32)
        times = position[slots] + (0 if batched else np.arange(m))
        queries = rng.standard_normal((m, 3, shape.z_dim), dtype=np.float32)
        queries[:, :2] *= spread
        projected = rng.standard_normal((m, shape.columns), dtype=np.float32)
        found = attention_kernels[form](
            queries, projected, listed, position, rings.keys, rings.values, matrix, 1,
            poisoned(m, shape.value_dim),
        )  # fmt: skip
        wanted = gated_reference(shape, rings, kept, 1, slots, times, queries, projected)
        # A score of thousands has an error of 1e-7 of itself, which softmax makes its own.
        assert_near(found, wanted, 4e-6 if spread == 1.0 else 2e-3)


@pytest.fixture(scope="module")
def commit_kernel(shape: CpuShape) -> Kernel:
    return Kernel(
        memory.memory_commit(
            shape.heads, shape.z_head, shape.v_head, shape.chunk, LAYERS, shape.dtype, shape.unit
        )
    )


@pytest.mark.parametrize("level", [-np.inf, -3.0, 4.0, 200.0])
def test_memory_commit(shape: CpuShape, commit_kernel: Kernel, level: float) -> None:
    """``level`` is the log-normaliser before: nothing kept yet, little, as much, far more."""
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
    for slots in ([0], [1], [3, 1, 2]):
        new_matrix, new_norm = commit_kernel(
            np.array(slots, np.int32), position, rings.memory_keys, rings.values, matrix, log_norm,
            1, writes=(4, 5),
        )  # fmt: skip
        for slot in slots:
            wanted, wanted_norm = commit_reference(
                shape, rings, matrix, log_norm, 1, slot, position[slot]
            )
            assert_near(new_matrix[1, slot], wanted, 3e-6)
            assert_near(new_norm[1, slot], wanted_norm, 1e-6)
            new_matrix[1, slot], new_norm[1, slot] = matrix[1, slot], log_norm[1, slot]
        assert new_matrix.tobytes() == matrix.tobytes(), "another slot or layer was changed"
        assert new_norm.tobytes() == log_norm.tobytes(), "another slot or layer was changed"
