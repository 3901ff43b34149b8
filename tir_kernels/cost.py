"""What each kernel must move and compute at least: bytes and operations from the shapes alone.

Bytes are the least traffic with main memory: every input read once, every output written once,
of a ring only the rows that a query sees, of the embedding only the rows looked up. Indices
(tokens, slots, positions) are left out. Operations are float32 ones: an addition, multiplication,
comparison, division, square root or exponential counts as one; conversions and arithmetic on
indices do not.

Intermediate results count as traffic, although between kernels they may stay in a cache: a kernel
can therefore be faster than the bound that its cost and a machine's read bandwidth give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gecko_mlc.config import GeckoConfig

_F32 = 4  # bytes: activations, recurrent state, vectors of weights
_SILU = 4  # x / (1 + exp(-x)): negation, exponential, addition, division
_SOFTMAX = 5  # per element: maximum, subtraction, exponential, addition, division


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes moved, by what they belong to, and float32 operations."""

    weights: int = 0
    state: int = 0
    activations: int = 0
    operations: int = 0

    @property
    def bytes(self) -> int:
        return self.weights + self.state + self.activations

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __mul__(self, times: int) -> Cost:
        return Cost(*(times * value for value in self._values()))

    def _values(self) -> tuple[int, ...]:
        return dataclasses.astuple(self)


@dataclasses.dataclass(frozen=True)
class Span:
    """``rows`` consecutive steps of one sequence, the first at position ``start``."""

    start: int
    rows: int = 1


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call of a compiled function works on.

    ``itemsize``: bytes of an element of matrices and rings. ``spans``: one of several steps inside
    a chunk for prefill and score, one of a single step per slot for decode; for commit the position
    after the chunk, with no rows. ``logits_rows``: rows that the output layer computes.
    """

    config: GeckoConfig
    itemsize: int
    spans: tuple[Span, ...]
    logits_rows: int

    @property
    def rows(self) -> int:
        return sum(span.rows for span in self.spans)

    def visible(self, span: Span) -> int:
        """Ring rows that the span's queries see: the previous chunk, their own up to the last."""
        chunk = self.config.chunk_size
        return min(span.start // chunk, 1) * chunk + span.start % chunk + span.rows

    def pairs(self, span: Span) -> int:
        """Query and key pairs of the span, per head."""
        first = self.visible(span) - span.rows + 1
        return span.rows * first + span.rows * (span.rows - 1) // 2


def embed(work: Work) -> Cost:
    elements = work.rows * work.config.model_dim
    return Cost(
        weights=elements * work.itemsize,
        activations=elements * _F32,
        operations=elements if work.config.scale_emb else 0,
    )


def timenorm(work: Work) -> Cost:
    """Per element: mean 1, variance 3, normalisation 4. Per group: both moments' recurrences 6,
    divisions by the group's size 2, bias correction 2, epsilon and inverse deviation 3."""
    dim, groups = work.config.model_dim, work.config.timenorm_num_groups
    return Cost(
        weights=2 * dim * _F32,
        state=len(work.spans) * 2 * 2 * groups * _F32,
        activations=2 * work.rows * dim * _F32,
        operations=work.rows * (8 * dim + 13 * groups),
    )


def cema(work: Work) -> Cost:
    """Per channel and mode: q h 6, p x and its addition 2, Re(gamma h) and its addition 4."""
    dim, modes = work.config.model_dim, work.config.cema_ndim
    return Cost(
        weights=5 * dim * modes * _F32,
        state=len(work.spans) * 2 * 2 * dim * modes * _F32,
        activations=2 * work.rows * dim * _F32,
        operations=work.rows * 12 * dim * modes,
    )


def rmsnorm(work: Work) -> Cost:
    """Per element: square and sum 2, scaling 2. Per group: mean, epsilon, root, inverse 4."""
    dim, groups = work.config.model_dim, work.config.layernorm_num_groups
    return Cost(
        weights=dim * _F32,
        activations=2 * work.rows * dim * _F32,
        operations=work.rows * (4 * dim + 4 * groups),
    )


def layernorm(work: Work) -> Cost:
    """Per element: mean 1, variance 3, normalisation 4. Per group: 5."""
    dim, groups = work.config.model_dim, work.config.layernorm_num_groups
    return Cost(
        weights=2 * dim * _F32,
        activations=2 * work.rows * dim * _F32,
        operations=work.rows * (8 * dim + 5 * groups),
    )


def product(rows: int, inputs: int, outputs: int, itemsize: int) -> Cost:
    """y [rows, outputs] = a [rows, inputs] times a weight [outputs, inputs], nothing fused."""
    return Cost(
        weights=outputs * inputs * itemsize,
        activations=rows * (inputs + outputs) * _F32,
        operations=2 * rows * inputs * outputs,
    )


def wv(work: Work) -> Cost:
    c, rows = work.config, work.rows
    ending = Cost(weights=c.value_dim * _F32, operations=rows * (1 + _SILU) * c.value_dim)
    return product(rows, c.model_dim, c.value_dim, work.itemsize) + ending


def wzrh(work: Work) -> Cost:
    c, rows = work.config, work.rows
    width = c.z_dim + c.value_dim + c.model_dim
    ending = Cost(weights=width * _F32, operations=rows * (width + _SILU * c.value_dim))
    return product(rows, c.model_dim, width, work.itemsize) + ending


def attention_inputs(work: Work) -> Cost:
    """Reads z and v, writes three sets of queries and a row of each ring.

    Per element of z: RMS norm 3, four affine maps 8, softmax of the memory's features 5, and where
    heads are rotated three rotations of 3 each. Two rows of the rotary table per step.
    """
    c, rows = work.config, work.rows
    rotated = c.rope_heads * c.z_head_dim
    return Cost(
        weights=8 * c.z_dim * _F32 + (rows * 2 * c.z_head_dim * _F32 if rotated else 0),
        state=rows * (2 * c.z_dim + c.value_dim) * work.itemsize,
        activations=rows * (c.z_dim + c.value_dim + 3 * c.z_dim) * _F32,
        operations=rows * ((3 + 8 + _SOFTMAX) * c.z_dim + 9 * rotated + 4 * c.num_heads),
    )


def attention(work: Work) -> Cost:
    """Scores, softmax and values over the visible rows; the gate; the memory from chunk 2 on."""
    c, rows = work.config, work.rows
    remembering = [span for span in work.spans if span.start >= 2 * c.chunk_size]
    # A set of queries for the own chunk, one for the previous, one for the memory: if it is there.
    sets = [1 + min(span.start // c.chunk_size, 2) for span in work.spans]
    visible = sum(work.visible(span) for span in work.spans)
    pairs = sum(work.pairs(span) for span in work.spans)
    memory = c.z_dim * c.v_head_dim
    queries = sum(n * span.rows for n, span in zip(sets, work.spans, strict=True)) * c.z_dim
    return Cost(
        state=visible * (c.z_dim + c.value_dim) * work.itemsize + len(remembering) * memory * _F32,
        activations=(queries + 2 * rows * c.value_dim) * _F32,
        operations=pairs * (2 * c.z_dim + 2 * c.value_dim + _SOFTMAX * c.num_heads)
        + rows * c.value_dim
        + sum(span.rows for span in remembering) * 2 * memory,
    )


def wh2(work: Work) -> Cost:
    c, rows = work.config, work.rows
    ending = Cost(activations=2 * rows * c.model_dim * _F32, operations=2 * rows * c.model_dim)
    return product(rows, c.value_dim, c.model_dim, work.itemsize) + ending


def fc1(work: Work) -> Cost:
    c, rows = work.config, work.rows
    hidden = rows * c.ffn_hidden_dim
    one = product(rows, c.model_dim, c.ffn_hidden_dim, work.itemsize)
    if not c.swiglu:
        return one + Cost(operations=_SILU * hidden)
    gate = Cost(weights=one.weights, operations=one.operations + (1 + _SILU) * hidden)
    return one + gate


def fc2(work: Work) -> Cost:
    c, rows = work.config, work.rows
    elements = rows * c.model_dim
    ending = Cost(activations=elements * _F32, operations=elements)
    if c.rescale_nffn:
        ending += Cost(weights=c.model_dim * _F32, operations=elements)
    return product(rows, c.ffn_hidden_dim, c.model_dim, work.itemsize) + ending


def last_row(work: Work) -> Cost:
    return Cost(activations=2 * work.config.model_dim * _F32)


def logits(work: Work) -> Cost:
    c = work.config
    return product(work.logits_rows, c.model_dim, c.num_outputs, work.itemsize)


def memory_commit(work: Work) -> Cost:
    """Two softmaxes of the memory keys, the prediction and the update of M [H, zh, vh].

    Per element of M: U - M, times the ratio, plus M 3. Per feature: logarithms and ratio 12.
    """
    c = work.config
    memory, keys = c.z_dim * c.v_head_dim, c.chunk_size * c.z_dim
    one = Cost(
        state=c.chunk_size * (c.z_dim + c.value_dim) * work.itemsize
        + 2 * (memory + c.z_dim) * _F32,
        operations=2 * _SOFTMAX * keys
        + 2 * 2 * c.chunk_size * memory
        + c.chunk_size * c.value_dim
        + 3 * memory
        + 12 * c.z_dim,
    )
    return one * len(work.spans)


# Kernels that run once per layer, and those of the output layer and the embedding.
LAYER_KERNELS: dict[str, Callable[[Work], Cost]] = {
    "timenorm": timenorm,
    "cema": cema,
    "rmsnorm": rmsnorm,
    "wv": wv,
    "wzrh": wzrh,
    "attention_inputs": attention_inputs,
    "attention": attention,
    "wh2": wh2,
    "layernorm": layernorm,
    "fc1": fc1,
    "fc2": fc2,
}
PRODUCTS = ("wv", "wzrh", "wh2", "fc1", "fc2", "logits")


def operation(kernel: str) -> str:
    """The operation that a kernel of a library computes: decode's kernels end in ``_step``."""
    return kernel.removesuffix("_step")


def forward(work: Work) -> dict[str, Cost]:
    """The cost of one call of prefill, score or decode, by operation, all layers together."""
    c = work.config
    costs = {name: cost(work) * c.num_layers for name, cost in LAYER_KERNELS.items()}
    costs["timenorm"] += timenorm(work)  # the output layer's
    return {"embed": embed(work), **costs, "last_row": last_row(work), "logits": logits(work)}


def commit(work: Work) -> dict[str, Cost]:
    """The cost of one call of commit."""
    return {"memory_commit": memory_commit(work) * work.config.num_layers}
