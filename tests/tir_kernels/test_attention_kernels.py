"""Attention's inputs, attention itself and the memory's update, against the float64 operations.

The state handed to a kernel has several layers and slots full of noise; only the rows that it has
to write may change.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from kernel_runner import DTYPES, Kernel, assert_near, poisoned, softmax

from gecko_mlc.checkpoint.mapping import rope_table
from gecko_mlc.reference import ops
from tir_kernels import attention, attention_inputs, memory
from tir_kernels.vector_unit import AVX2, AVX512, NEON, PORTABLE, VectorUnit

EPS = 1e-5
LAYERS, SLOTS = 2, 4


@dataclasses.dataclass(frozen=True)
class Shape:
    heads: int
    z_head: int
    v_head: int
    chunk: int
    model_dim: int
    rope_heads: int
    dtype: str
    unit: VectorUnit

    @property
    def z_dim(self) -> int:
        return self.heads * self.z_head

    @property
    def value_dim(self) -> int:
        return self.heads * self.v_head

    @property
    def columns(self) -> int:
        return self.z_dim + self.value_dim + self.model_dim

    @property
    def rope(self) -> np.ndarray:
        """The table as weights carry it: an odd z_head has an unused last pair."""
        return rope_table(2 * self.chunk, self.z_head, 10000.0).astype(np.float32)


SHAPES = {
    "regular": Shape(2, 32, 64, 64, 48, 2, "float32", AVX512),
    "five heads": Shape(5, 8, 26, 48, 40, 2, "float32", AVX512),
    "no rotary heads": Shape(3, 7, 13, 24, 12, 0, "float32", AVX2),
    "bfloat16": Shape(2, 12, 20, 40, 16, 1, "bfloat16", NEON),
    "float16": Shape(1, 6, 5, 10, 7, 1, "float16", PORTABLE),
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> Shape:
    return request.param


class Rings:
    """Keys, values and memory keys [layers, slots, 2C, .] with noise in every row."""

    def __init__(self, rng: np.random.Generator, shape: Shape, spread: float = 1.0) -> None:
        def noise(width: int) -> np.ndarray:
            ring = rng.standard_normal((LAYERS, SLOTS, 2 * shape.chunk, width)) * spread
            return ring.astype(DTYPES[shape.dtype])

        self.keys, self.values = noise(shape.z_dim), noise(shape.value_dim)
        self.memory_keys = noise(shape.z_dim)

    def all(self) -> tuple[np.ndarray, ...]:
        return self.keys, self.values, self.memory_keys


def by_head(x: np.ndarray, heads: int) -> np.ndarray:
    """[n, heads * width] to [heads, n, width], float64."""
    return x.astype(np.float64).reshape(len(x), heads, -1).transpose(1, 0, 2)


def rotated(x: np.ndarray, angles: np.ndarray, shape: Shape) -> np.ndarray:
    """x [n, S] with its first heads rotated by angle ``angles[n]`` in positions."""
    if shape.rope_heads == 0:
        return x
    turn = ops.rotation(
        0, 2 * shape.chunk, shape.z_head, 10000.0, torch.float64, torch.device("cpu")
    )
    heads = torch.from_numpy(x).view(1, len(x), shape.heads, shape.z_head)
    return ops.rotary(heads, turn[angles], shape.rope_heads).view(len(x), -1).numpy()


@pytest.fixture(scope="module")
def inputs_kernels(shape: Shape) -> dict[bool, Kernel]:
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
def test_attention_inputs(shape: Shape, inputs_kernels: dict[bool, Kernel], batched: bool) -> None:
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

        shared = torch.from_numpy(projected[:, : shape.z_dim]).double()
        z = ops.group_rms_norm(shared, None, shape.heads, EPS).numpy()
        q, k, memory_query, memory_key = (
            z * gamma[i].astype(np.float64) + beta[i].astype(np.float64) for i in range(4)
        )
        index = times % chunk
        features = softmax(memory_query.reshape(m, shape.heads, -1)).reshape(m, -1)
        own, before = rotated(q, index, shape), rotated(q, chunk + index, shape)
        assert_near(queries, np.stack([own, before, features], 1), 3e-6)

        written = rotated(k, index, shape), value.astype(np.float64), memory_key
        for ring, initial, wanted in zip(found, rings.all(), written, strict=True):
            stored = ring[1, slots, times % (2 * chunk)]
            if shape.dtype == "float32":
                assert_near(stored, wanted, 3e-6)
            else:  # rounded once: at most half a unit in the last place, and float32's error
                half = np.spacing(np.abs(stored)).astype(np.float64) / 2.0
                assert (np.abs(stored.astype(np.float64) - wanted) <= half + 3e-6).all()
            ring[1, slots, times % (2 * chunk)] = initial[1, slots, times % (2 * chunk)]
            assert ring.tobytes() == initial.tobytes(), "a row that is not this step's was changed"


class Window:
    """What one query may see, from the definition: positions of its own chunk and the last."""

    def __init__(self, shape: Shape, rings: Rings, layer: int, slot: int, time: int) -> None:
        chunk = shape.chunk
        start = time - time % chunk
        self.own = np.arange(start, time + 1) % (2 * chunk)
        self.before = np.arange(max(0, start - chunk), start) % (2 * chunk)
        self.keys = by_head(rings.keys[layer, slot], shape.heads)
        self.values = by_head(rings.values[layer, slot], shape.heads)

    def attend(self, queries: np.ndarray) -> np.ndarray:
        """queries [H, 2, zh]: against the own chunk, against the one before. Returns [E]."""
        scores = np.concatenate(
            [
                np.einsum("hnk,hk->hn", self.keys[:, self.before], queries[:, 1]),
                np.einsum("hnk,hk->hn", self.keys[:, self.own], queries[:, 0]),
            ],
            axis=1,
        )
        values = np.concatenate([self.values[:, self.before], self.values[:, self.own]], axis=1)
        return np.einsum("hn,hnv->hv", softmax(scores), values).ravel()


def gated_reference(
    shape: Shape, rings: Rings, memory: np.ndarray, layer: int, slots: list[int],
    times: np.ndarray, queries: np.ndarray, projected: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """attention * r + features @ memory for every row. [m, E]"""
    wanted = []
    gate = projected[:, shape.z_dim : shape.z_dim + shape.value_dim].astype(np.float64)
    for row, (slot, time) in enumerate(zip(slots, times, strict=True)):
        query = queries[row].astype(np.float64).reshape(3, shape.heads, shape.z_head)
        query = query.transpose(1, 0, 2)
        attended = Window(shape, rings, layer, slot, time).attend(query[:, :2])
        matrix = memory[layer, slot].astype(np.float64)
        read = np.einsum("hk,hkv->hv", query[:, 2], matrix).ravel()
        wanted.append(attended * gate[row] + read)
    return np.array(wanted)


@pytest.fixture(scope="module")
def attention_kernels(shape: Shape) -> dict[str, Kernel]:
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
    shape: Shape, attention_kernels: dict[str, Kernel], form: str, spread: float
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
def commit_kernel(shape: Shape) -> Kernel:
    return Kernel(
        memory.memory_commit(
            shape.heads, shape.z_head, shape.v_head, shape.chunk, LAYERS, shape.dtype, shape.unit
        )
    )


@pytest.mark.parametrize("level", [-np.inf, -3.0, 4.0, 200.0])
def test_memory_commit(shape: Shape, commit_kernel: Kernel, level: float) -> None:
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
            # The chunk before the one that has just ended has the half that comes next.
            first = position[slot] % (2 * chunk)
            key, value = (
                torch.from_numpy(by_head(ring[1, slot, first : first + chunk], shape.heads))
                for ring in (rings.memory_keys, rings.values)
            )
            wanted, wanted_norm = ops.memory_commit(
                torch.from_numpy(matrix[1, slot]).double(),
                torch.from_numpy(log_norm[1, slot]).double(),
                key,
                value,
            )
            assert_near(new_matrix[1, slot], wanted.numpy(), 3e-6)
            assert_near(new_norm[1, slot], wanted_norm.numpy(), 1e-6)
            new_matrix[1, slot], new_norm[1, slot] = matrix[1, slot], log_norm[1, slot]
        assert new_matrix.tobytes() == matrix.tobytes(), "another slot or layer was changed"
        assert new_norm.tobytes() == log_norm.tobytes(), "another slot or layer was changed"
