"""Attention of many queries against its definition in NumPy, float64.

The state has several layers and slots; rows of a ring that no query may see are NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from kernel_runner import DTYPES, assert_near, silu, softmax

from gpu.gpu_runner import GpuKernel
from gpu.gpu_units import with_units
from tir_kernels.gpu.attention import prefill
from tir_kernels.gpu.unit import GpuUnit

LAYERS, SLOTS, LAYER, SLOT = 2, 3, 1, 2


@dataclasses.dataclass(frozen=True)
class Shape:
    heads: int
    z_head: int
    v_head: int
    model_dim: int
    chunk: int
    dtype: str

    @property
    def columns(self) -> int:
        return self.heads * (self.z_head + self.v_head) + self.model_dim

    @property
    def rounding(self) -> float:
        """Half a unit in the last place of 1."""
        return {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}[self.dtype]


SHAPES = {
    "tensor cores": Shape(2, 32, 136, 6, 256, "bfloat16"),
    "float32": Shape(1, 16, 136, 12, 160, "float32"),
    "odd": Shape(5, 7, 13, 11, 10, "float16"),
}


class Kernels:
    """Prefill's attention for one shape on one unit."""

    def __init__(self, shape: Shape, unit: GpuUnit) -> None:
        self.shape = shape
        sizes = shape.heads, shape.z_head, shape.v_head
        rest = shape.chunk, LAYERS, shape.dtype, unit
        self.memory_cast = GpuKernel(prefill.memory_cast(*sizes, *rest[1:]))
        self.weights: Callable[..., np.ndarray] = GpuKernel(
            prefill.attention_weights(*sizes, *rest)
        )
        self.attention = GpuKernel(prefill.attention(*sizes, shape.model_dim, *rest))


@pytest.fixture(scope="module", params=with_units(SHAPES, on_few=("float32", "odd")))
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(*request.param)


def by_head(x: np.ndarray, heads: int) -> np.ndarray:
    """[n, heads * width] to [heads, n, width], float64."""
    return x.astype(np.float64).reshape(len(x), heads, -1).transpose(1, 0, 2)


# The first row's index, counted from the sequence's beginning in chunks, and the number of rows.
@pytest.mark.parametrize(
    "begin, rows",
    [(0.0, 1.0), (0.5, 0.3), (1.0, 1.0), (3.25, 0.75), (2.0, 0.0)],
    ids=["first chunk", "within it", "second chunk", "end of the fourth", "one row"],
)
def test_attention(kernels: Kernels, begin: float, rows: float) -> None:
    shape = kernels.shape
    heads, chunk, dtype = shape.heads, shape.chunk, DTYPES[shape.dtype]
    z_dim, value_dim = heads * shape.z_head, heads * shape.v_head
    rng = np.random.default_rng(chunk)
    time = int(begin * chunk)
    m = max(1, int(rows * chunk))
    start = time % chunk
    own = time % (2 * chunk) - start + np.arange(start + m)
    before = (chunk - own[0] + np.arange(chunk)) if time >= chunk else np.arange(0)
    seen = np.concatenate([before, own])

    def noise(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(dtype)

    def nan(*size: int) -> np.ndarray:
        return np.full(size, np.nan, dtype)

    keys, values = nan(LAYERS, SLOTS, 2 * chunk, z_dim), nan(LAYERS, SLOTS, 2 * chunk, value_dim)
    keys[LAYER, SLOT, seen] = noise(len(seen), z_dim)
    values[LAYER, SLOT, seen] = noise(len(seen), value_dim)
    memory = rng.standard_normal(
        (LAYERS, SLOTS, heads, shape.z_head, shape.v_head), dtype=np.float32
    )
    queries, projected = noise(3, m, z_dim), noise(m, shape.columns)
    bias = rng.standard_normal(shape.columns, dtype=np.float32)
    slots = np.array([SLOT], np.int32)
    position = np.array([7, 3 * chunk, time], np.int32)

    cast = kernels.memory_cast(slots, memory, LAYER, nan(heads, shape.z_head, shape.v_head))
    assert np.array_equal(cast, memory[LAYER, SLOT].astype(dtype))
    weights = kernels.weights(queries, slots, position, keys, LAYER, nan(heads, m, 2 * chunk))
    gated = kernels.attention(
        weights, queries, values, cast, projected, bias, slots, position, LAYER,
        nan(m, value_dim),
    )  # fmt: skip

    own_query, query_before, features = (by_head(q, heads) for q in queries)
    key, value = (by_head(ring[LAYER, SLOT, seen], heads) for ring in (keys, values))
    scores = np.concatenate(
        [
            query_before @ key[:, : len(before)].transpose(0, 2, 1),
            own_query @ key[:, len(before) :].transpose(0, 2, 1),
        ],
        axis=2,
    )
    index, row = np.arange(len(seen)) - len(before), np.arange(m)[:, None]
    probabilities = softmax(np.where(index > start + row, -np.inf, scores))
    # What no row sees need not be written.
    found = np.where(index > start + row, 0.0, weights[:, :, seen].astype(np.float64))
    assert_near(found, probabilities, shape.rounding + 1e-6)
    r = projected[:, z_dim : z_dim + value_dim].astype(np.float64) + bias[z_dim : z_dim + value_dim]
    # Beyond here the kernel's own probabilities: their rounding has been judged.
    wanted = by_head(silu(r), heads) * (found @ value) + features @ cast.astype(np.float64)
    assert_near(gated, wanted.transpose(1, 0, 2).reshape(m, -1), shape.rounding + 2e-6)
