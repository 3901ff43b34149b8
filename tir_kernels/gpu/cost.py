"""What each kernel on a GPU must move and compute at least (see ``tir_kernels.cost``).

The operations are the same; what is fused, and which activations have the model's dtype, decides
the bytes. Between kernels of one call activations may stay in the L2 cache. Partial results, whose
number a kernel chooses, are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tir_kernels import cost
from tir_kernels.cost import Cost, Work

_F32 = 4


def _activations(work: Work, narrow: int = 0, wide: int = 0) -> int:
    """Bytes of so many elements a row in the model's dtype, and so many in float32."""
    return work.rows * (narrow * work.itemsize + wide * _F32)


def _fused(*parts: Cost, activations: int) -> Cost:
    """Operations, weights and state of the parts; of their activations what is named instead."""
    total = sum(parts, Cost())
    return Cost(total.weights, total.state, activations, total.operations)


def _projected(work: Work) -> int:
    c = work.config
    return c.z_dim + c.value_dim + c.model_dim


def _product(work: Work, rows: int, inputs: int, outputs: int, out_size: int | None = None) -> Cost:
    """A product by itself: its weight, its operands' bytes."""
    one = cost.product(rows, inputs, outputs, work.itemsize)
    out_size = out_size or work.itemsize
    moved = rows * (inputs * work.itemsize + outputs * out_size)
    return Cost(weights=one.weights, activations=moved, operations=one.operations)


# Prefill, commit and score.


def timenorm_stats(work: Work) -> Cost:
    """Reads x and, but for the first norm, the product to add to it, and writes the sum.

    Per element: the sum 1, mean 1, variance 3. Per group: divisions 2.
    """
    c = work.config
    return Cost(
        state=len(work.spans) * 2 * c.timenorm_num_groups * _F32,
        activations=_activations(work, narrow=c.model_dim, wide=2 * c.model_dim)
        + 2 * work.rows * c.timenorm_num_groups * _F32,
        operations=work.rows * (5 * c.model_dim + 2 * c.timenorm_num_groups),
    )


def timenorm(work: Work) -> Cost:
    """The recurrence of the moments, and the normalisation."""
    c = work.config
    return Cost(
        weights=2 * c.model_dim * _F32,
        state=len(work.spans) * 2 * c.timenorm_num_groups * _F32,
        activations=_activations(work, narrow=c.model_dim, wide=c.model_dim)
        + 2 * work.rows * c.timenorm_num_groups * _F32,
        operations=work.rows * (4 * c.model_dim + 11 * c.timenorm_num_groups),
    )


def cema(work: Work) -> Cost:
    return _fused(cost.cema(work), activations=_activations(work, narrow=2 * work.config.model_dim))


def rmsnorm(work: Work) -> Cost:
    moved = _activations(work, narrow=2 * work.config.model_dim)
    return _fused(cost.rmsnorm(work), activations=moved)


def wv(work: Work) -> Cost:
    return _product(work, work.rows, work.config.model_dim, work.config.value_dim)


def wzrh(work: Work) -> Cost:
    return _product(work, work.rows, work.config.model_dim, _projected(work))


def attention_inputs(work: Work) -> Cost:
    """Biases and activations of z and v too."""
    c = work.config
    ending = Cost(
        weights=(c.value_dim + c.z_dim) * _F32,
        operations=work.rows * (c.z_dim + 5 * c.value_dim),
    )
    moved = _activations(work, narrow=c.z_dim + c.value_dim + 3 * c.z_dim)
    return _fused(cost.attention_inputs(work), ending, activations=moved)


def attention_weights(work: Work) -> Cost:
    """Scores and their softmax; the probabilities of the visible pairs are written."""
    c = work.config
    pairs = sum(work.pairs(span) for span in work.spans) * c.num_heads
    return Cost(
        state=sum(work.visible(span) for span in work.spans) * c.z_dim * work.itemsize,
        activations=_activations(work, narrow=2 * c.z_dim) + pairs * work.itemsize,
        operations=pairs * (2 * c.z_head_dim + 5),
    )


def memory_cast(work: Work) -> Cost:
    memory = work.config.z_dim * work.config.v_head_dim
    return Cost(
        state=len(work.spans) * memory * _F32,
        activations=len(work.spans) * memory * work.itemsize,
    )


def attention(work: Work) -> Cost:
    """Probabilities times values, the memory's reading, the gate with its bias and activation."""
    c = work.config
    pairs = sum(work.pairs(span) for span in work.spans) * c.num_heads
    memory = c.z_dim * c.v_head_dim
    return Cost(
        weights=c.value_dim * _F32,
        state=sum(work.visible(span) for span in work.spans) * c.value_dim * work.itemsize,
        activations=_activations(work, narrow=c.z_dim + 2 * c.value_dim)
        + (pairs + len(work.spans) * memory) * work.itemsize,
        operations=pairs * 2 * c.v_head_dim + work.rows * (2 * memory + 7 * c.value_dim),
    )


def wh2(work: Work) -> Cost:
    return _product(work, work.rows, work.config.value_dim, work.config.model_dim)


def layernorm(work: Work) -> Cost:
    """Adds wh1's product, its bias and x to wh2's product first."""
    dim = work.config.model_dim
    added = Cost(weights=dim * _F32, operations=3 * work.rows * dim)
    moved = _activations(work, narrow=3 * dim, wide=2 * dim)
    return _fused(cost.layernorm(work), added, activations=moved)


def fc1(work: Work) -> Cost:
    c = work.config
    hidden = 2 * c.ffn_hidden_dim if c.swiglu else c.ffn_hidden_dim
    return _product(work, work.rows, c.model_dim, hidden)


def gate(work: Work) -> Cost:
    c = work.config
    gates, each = (2, 5) if c.swiglu else (1, 4)
    return Cost(
        activations=_activations(work, narrow=(gates + 1) * c.ffn_hidden_dim),
        operations=work.rows * each * c.ffn_hidden_dim,
    )


def fc1_gated(work: Work) -> Cost:
    """fc1 and its gate at once: the product itself is not written."""
    c = work.config
    raw = _activations(work, narrow=2 * 2 * c.ffn_hidden_dim)
    both = fc1(work) + gate(work)
    return dataclasses.replace(both, activations=both.activations - raw)


def fc2(work: Work) -> Cost:
    return _product(work, work.rows, work.config.ffn_hidden_dim, work.config.model_dim)


def last_row(work: Work) -> Cost:
    return Cost(activations=2 * work.config.model_dim * work.itemsize)


def logits(work: Work) -> Cost:
    c = work.config
    return _product(work, work.logits_rows, c.model_dim, c.num_outputs, _F32)


# A step of decode.


def timenorm_cema_step(work: Work) -> Cost:
    """Reads x, writes its norm and CEMA's output."""
    dim = work.config.model_dim
    moved = _activations(work, narrow=dim, wide=2 * dim)
    return _fused(cost.timenorm(work), cost.cema(work), activations=moved)


def timenorm_step(work: Work) -> Cost:
    dim = work.config.model_dim
    return _fused(cost.timenorm(work), activations=_activations(work, narrow=dim, wide=dim))


def projections_step(work: Work) -> Cost:
    """The RMS norm of CEMA's output, then every product of it and of the norm."""
    c = work.config
    wide = c.model_dim + c.value_dim + _projected(work)
    parts = cost.rmsnorm(work), cost.wv(work), cost.wzrh(work)
    return _fused(*parts, activations=_activations(work, narrow=c.model_dim, wide=wide))


def attention_step(work: Work) -> Cost:
    c = work.config
    moved = _activations(work, wide=c.z_dim + c.value_dim)
    return _fused(cost.attention_inputs(work), cost.attention(work), activations=moved)


def attention_combine(work: Work) -> Cost:
    """Reads the gate, writes the gated rows."""
    value_dim = work.config.value_dim
    return Cost(activations=_activations(work, narrow=value_dim, wide=value_dim))


def wh2_step(work: Work) -> Cost:
    c = work.config
    moved = _activations(work, narrow=c.value_dim, wide=3 * c.model_dim)
    return _fused(cost.wh2(work), activations=moved)


def fc1_step(work: Work) -> Cost:
    """The layer norm of its input first."""
    c = work.config
    moved = _activations(work, narrow=c.ffn_hidden_dim, wide=c.model_dim)
    return _fused(cost.layernorm(work), cost.fc1(work), activations=moved)


def fc2_step(work: Work) -> Cost:
    c = work.config
    moved = _activations(work, narrow=c.ffn_hidden_dim, wide=2 * c.model_dim)
    return _fused(cost.fc2(work), activations=moved)


def sample(work: Work) -> Cost:
    """The greedy choice: a comparison for each logit."""
    outputs = work.config.num_outputs
    return Cost(activations=_activations(work, wide=outputs), operations=work.rows * outputs)


# The memory's update, four kernels for each layer. Intermediate results count as activations.


def _committed(work: Work) -> tuple[int, int, int]:
    """Slots; elements of a memory; elements of a chunk's memory keys."""
    c = work.config
    return len(work.spans), c.z_dim * c.v_head_dim, c.chunk_size * c.z_dim


def memory_levels(work: Work) -> Cost:
    slots, _, keys = _committed(work)
    c = work.config
    return Cost(
        state=slots * (keys * work.itemsize + 2 * c.z_dim * _F32),
        activations=slots * 3 * c.z_dim * _F32,
        operations=slots * (3 * keys + 12 * c.z_dim),
    )


def memory_weights(work: Work) -> Cost:
    slots, memory, keys = _committed(work)
    return Cost(
        state=slots * (keys * work.itemsize + memory * _F32),
        activations=slots * (2 * keys + memory) * work.itemsize,
        operations=slots * (5 + 2) * keys,
    )


def memory_overlap(work: Work) -> Cost:
    slots, _, keys = _committed(work)
    z_head = work.config.z_head_dim
    overlap = work.config.z_dim * z_head
    return Cost(
        activations=slots * (2 * keys + overlap) * work.itemsize,
        operations=slots * 2 * keys * z_head,
    )


def memory_update(work: Work) -> Cost:
    """One product over the chunk's values and the memory before it; then M."""
    slots, memory, keys = _committed(work)
    c = work.config
    overlap = c.z_dim * c.z_head_dim
    return Cost(
        state=slots * (c.chunk_size * c.value_dim * work.itemsize + 2 * memory * _F32),
        activations=slots * (keys + overlap + memory) * work.itemsize,
        operations=slots * (2 * (c.chunk_size + c.z_head_dim) + 3) * memory,
    )


_LAYER: dict[str, Callable[[Work], Cost]] = {
    "timenorm_stats": timenorm_stats,
    "timenorm": timenorm,
    "cema": cema,
    "rmsnorm": rmsnorm,
    "wv": wv,
    "wzrh": wzrh,
    "attention_inputs": attention_inputs,
    "attention_weights": attention_weights,
    "memory_cast": memory_cast,
    "attention": attention,
    "wh2": wh2,
    "layernorm": layernorm,
    "fc1": fc1,
    "gate": gate,
    "fc1_gated": fc1_gated,
    "fc2": fc2,
}
_LAYER_STEP: dict[str, Callable[[Work], Cost]] = {
    "timenorm_cema_step": timenorm_cema_step,
    "projections_step": projections_step,
    "attention_step": attention_step,
    "attention_combine": attention_combine,
    "wh2_step": wh2_step,
    "fc1_step": fc1_step,
    "fc2_step": fc2_step,
}


_COMMIT: dict[str, Callable[[Work], Cost]] = {
    "memory_levels": memory_levels,
    "memory_weights": memory_weights,
    "memory_overlap": memory_overlap,
    "memory_update": memory_update,
}


def commit(work: Work) -> dict[str, Cost]:
    """The cost of one call of commit, by kernel, all layers together."""
    return {name: kernel(work) * work.config.num_layers for name, kernel in _COMMIT.items()}


def prefill(work: Work) -> dict[str, Cost]:
    """The cost of one call of prefill or score, by kernel, all layers together."""
    layers = work.config.num_layers
    costs = {name: kernel(work) * layers for name, kernel in _LAYER.items()}
    costs["timenorm_stats"] += timenorm_stats(work)  # the output layer's
    costs["timenorm"] += timenorm(work)
    return {
        "embed": cost.embed(work),
        **costs,
        "last_row": last_row(work),
        "logits": logits(work),
    }


def decode(work: Work) -> dict[str, Cost]:
    """The cost of one step, by kernel, all layers together."""
    costs = {name: kernel(work) * work.config.num_layers for name, kernel in _LAYER_STEP.items()}
    return {
        "embed": cost.embed(work),
        **costs,
        "timenorm_step": timenorm_step(work),
        "logits_step": logits(work),
        "sample": sample(work),
    }


_NAMES = frozenset(
    ["embed", *_LAYER, "last_row", "logits", "advance", *_COMMIT]
    + [*_LAYER_STEP, "rmsnorm_step", "layernorm_step"]
    + ["timenorm_step", "advance_step", "logits_step", "sample"]
)


def kernel(name: str) -> str:
    """A kernel's name in a library without the number that tells it from others of that name."""
    plain = [known for known in _NAMES if name == known or name.removeprefix(known).isdigit()]
    return name if name in _NAMES else max(plain, key=len, default=name)
