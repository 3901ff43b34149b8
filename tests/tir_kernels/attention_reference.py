"""What attention's tests share: shapes, rings full of noise, and attention by its definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from kernel_runner import DTYPES, softmax

from gecko_mlc.checkpoint.mapping import rope_table
from gecko_mlc.reference import ops

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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What becomes of z [m, S] at ``times`` [m], all float64 [m, S]."""

    own: np.ndarray
    before: np.ndarray
    features: np.ndarray
    key: np.ndarray
    memory_key: np.ndarray


def inputs_reference(
    z: np.ndarray, gamma: np.ndarray, beta: np.ndarray, times: np.ndarray, shape: Shape
) -> Inputs:
    z = ops.group_rms_norm(torch.from_numpy(z).double(), None, shape.heads, EPS).numpy()
    q, k, memory_query, memory_key = (
        z * gamma[i].astype(np.float64) + beta[i].astype(np.float64) for i in range(4)
    )
    index = times % shape.chunk
    features = softmax(memory_query.reshape(len(z), shape.heads, -1)).reshape(len(z), -1)
    return Inputs(
        rotated(q, index, shape),
        rotated(q, shape.chunk + index, shape),
        features,
        rotated(k, index, shape),
        memory_key,
    )


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
    """attention * r + features @ memory for every row of queries [m, 3, S]. Returns [m, E]."""
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


def commit_reference(
    shape: Shape, rings: Rings, memory: np.ndarray, log_norm: np.ndarray, layer: int, slot: int,
    position: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A slot's memory and log-normaliser after the chunk that ended before ``position``."""
    # The chunk before the one that has just ended has the half that comes next.
    first = position % (2 * shape.chunk)
    key, value = (
        torch.from_numpy(by_head(ring[layer, slot, first : first + shape.chunk], shape.heads))
        for ring in (rings.memory_keys, rings.values)
    )
    before = torch.from_numpy(memory[layer, slot]).double()
    norm = torch.from_numpy(log_norm[layer, slot]).double()
    after, norm = ops.memory_commit(before, norm, key, value)
    return after.numpy(), norm.numpy()


def assert_stored(stored: np.ndarray, wanted: np.ndarray, dtype: str, tolerance: float) -> None:
    """A float32 result within ``tolerance``, then rounded once to ``dtype``."""
    exact = stored.astype(np.float64)
    half = 0.0 if dtype == "float32" else np.spacing(np.abs(stored)).astype(np.float64) / 2.0
    scale = max(1.0, np.abs(wanted).max())
    assert (np.abs(exact - wanted) <= half + tolerance * scale).all()
