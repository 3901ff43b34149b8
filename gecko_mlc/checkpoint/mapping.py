"""The table from a gecko-llm state dict to the parameters a compiled library takes, as data.

Everything that is constant at inference is folded here, once, in float64: CEMA's coefficients, the
one that norm weights are stored without, the query and key scales, the rotary angles. Matrices that
share an input are joined, so that a decode step reads them in one go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from gecko_mlc.config import GeckoConfig

# What a quantization's name means for matrices; vectors and folded constants stay float32.
QUANTIZATIONS = {"q0f32": "float32", "q0f16": "float16", "q0bf16": "bfloat16"}


class QuantizationError(ValueError):
    """A quantization name that is not known."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint. ``integer`` allows (and does not require) an integer dtype."""

    name: str
    shape: tuple[int, ...]
    integer: bool = False


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of the compiled library.

    ``fold`` takes the sources as float64 arrays, in order, and returns ``shape`` in float64.
    Without it the sources' rows follow one another (so that they can be converted in blocks).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[Source, ...]
    fold: Callable[..., np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * {"float32": 4, "int32": 4}.get(self.dtype, 2)


def parameters(config: GeckoConfig, quantization: str) -> list[Parameter]:
    """All parameters of a library, in the order they are stored."""
    if quantization not in QUANTIZATIONS:
        raise QuantizationError(
            f"no quantization {quantization!r}; there are {', '.join(QUANTIZATIONS)}"
        )
    matrix = QUANTIZATIONS[quantization]
    d = config.model_dim
    table = [_stored("embed.weight", (config.vocab_size, d), matrix)]
    for layer in range(config.num_layers):
        table += _mega(config, f"layers.{layer}.mega.", matrix)
        table += _nffn(config, f"layers.{layer}.nffn.", matrix)
    table += _timenorm(config, "output.final_norm.")
    if not config.share_emb:
        table.append(_stored("output.output.weight", (config.num_outputs, d), matrix))
    # Written without rotary heads too, so that every library takes the same parameters.
    rows, half = 2 * config.chunk_size, (config.z_head_dim + 1) // 2
    fold = partial(rope_table, rows, config.z_head_dim, config.rope_base)
    table.append(Parameter("rope.table", (rows, half, 2), "float32", (), fold))
    return table


def tolerated(config: GeckoConfig) -> list[Source]:
    """Tensors a checkpoint may hold beside the sources: copies of what is known otherwise."""
    copies = [Source("rope.freqs", (config.z_head_dim // 2,))]
    if config.share_emb:
        copies.append(Source("output.output.weight", (config.num_outputs, config.model_dim)))
    return copies


def _stored(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Parameter:
    """As the checkpoint has it."""
    return Parameter(name, shape, dtype, (Source(name, shape),))


def _joined(name: str, dtype: str, *sources: Source) -> Parameter:
    """The rows of several tensors under one another."""
    shape = (sum(source.shape[0] for source in sources), *sources[0].shape[1:])
    return Parameter(name, shape, dtype, sources)


def _plus_one(name: str, size: int) -> Parameter:
    return Parameter(name, (size,), "float32", (Source(name, (size,)),), plus_one)


def _constant(name: str, size: int, value: float) -> Parameter:
    return Parameter(name, (size,), "float32", (), partial(np.full, size, value))


def _timenorm(config: GeckoConfig, prefix: str) -> Iterator[Parameter]:
    d, groups = config.model_dim, config.timenorm_num_groups
    count = prefix + "prior_count"
    yield _plus_one(prefix + "weight", d)
    yield _stored(prefix + "bias", (d,))
    yield Parameter(count, (1,), "int32", (Source(count, (), integer=True),), whole_count)
    yield _stored(prefix + "prior_mean", (groups,))
    yield _stored(prefix + "prior_var", (groups,))


def _mega(config: GeckoConfig, prefix: str, matrix: str) -> Iterator[Parameter]:
    d, s, e, n = config.model_dim, config.z_dim, config.value_dim, config.cema_ndim
    yield from _timenorm(config, prefix + "timenorm.")

    cema = prefix + "cema."
    alpha, delta = Source(cema + "alpha", (d, n)), Source(cema + "delta", (d, n))
    theta = Source(cema + "theta", (d,))
    yield Parameter(cema + "p", (d, n), "float32", (alpha,), cema_p)
    yield Parameter(cema + "q", (d, n, 2), "float32", (alpha, delta, theta), cema_q)
    yield _stored(cema + "gamma", (d, n, 2))

    rmsnorm = prefix + "rmsnorm.weight"
    yield _plus_one(rmsnorm, d) if config.norm_affine else _constant(rmsnorm, d, 1.0)

    yield _stored(prefix + "wv.weight", (e, d), matrix)
    yield _stored(prefix + "wv.bias", (e,))
    heights = {"wz": s, "wr": e, "wh1": d}
    weights = [Source(f"{prefix}{name}.weight", (rows, d)) for name, rows in heights.items()]
    biases = [Source(f"{prefix}{name}.bias", (rows,)) for name, rows in heights.items()]
    yield _joined(prefix + "wzrh.weight", matrix, *weights)
    yield _joined(prefix + "wzrh.bias", "float32", *biases)

    scale = Source(prefix + "gamma", (4, s))
    fold = partial(attention_scale, config.z_head_dim)
    yield Parameter(prefix + "gamma", (4, s), "float32", (scale,), fold)
    yield _stored(prefix + "beta", (4, s))
    yield _stored(prefix + "wh2.weight", (d, e), matrix)


def _nffn(config: GeckoConfig, prefix: str, matrix: str) -> Iterator[Parameter]:
    d, f = config.model_dim, config.ffn_hidden_dim
    if config.norm_affine:
        yield _plus_one(prefix + "norm.weight", d)
        yield _stored(prefix + "norm.bias", (d,))
    else:
        yield _constant(prefix + "norm.weight", d, 1.0)
        yield _constant(prefix + "norm.bias", d, 0.0)
    names = ("fc1", "fc3") if config.swiglu else ("fc1",)
    gates = [Source(f"{prefix}{name}.weight", (f, d)) for name in names]
    yield _joined(prefix + "fc1.weight", matrix, *gates)
    yield _stored(prefix + "fc2.weight", (d, f), matrix)
    if config.rescale_nffn:
        yield _stored(prefix + "alpha", (d,))


def plus_one(weight: np.ndarray) -> np.ndarray:
    """A norm's weight, which is stored minus one."""
    return weight + 1.0


def whole_count(count: np.ndarray) -> np.ndarray:
    """``prior_count`` as [1]; ValueError when it is not a whole number in int32."""
    if not 0 <= count < 2**31 or count != np.floor(count):
        raise ValueError(f"is {count}, wanted a whole number from 0 to {2**31 - 1}")
    return count.reshape(1)


def attention_scale(z_head_dim: int, gamma: np.ndarray) -> np.ndarray:
    """``(gamma + 1) / sqrt(zh)`` for the rows q, k, aq, ak. [4, S]"""
    return (gamma + 1.0) / math.sqrt(z_head_dim)


def cema_p(alpha: np.ndarray) -> np.ndarray:
    """Input coefficients ``sigmoid(alpha)``. [D, N]"""
    return _sigmoid(alpha)


def cema_q(alpha: np.ndarray, delta: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """``(1 - sigmoid(alpha) sigmoid(delta)) exp(i n theta')``, modes n = 1..N. -> [D, N, 2]

    with ``theta' = sigmoid(theta) 2 pi / N`` (arXiv 2601.06463; Megalodon, arXiv 2404.08801).
    """
    ndim = alpha.shape[1]
    phase = _sigmoid(theta)[:, None] * (2.0 * math.pi / ndim) * np.arange(1, ndim + 1)  # [D, N]
    radius = 1.0 - _sigmoid(alpha) * _sigmoid(delta)  # [D, N]
    return np.stack([radius * np.cos(phase), radius * np.sin(phase)], axis=-1)


def rope_table(rows: int, z_head_dim: int, base: float) -> np.ndarray:
    """Cosine and sine of ``index * base^(-2j / zh)``. [rows, zh/2, 2]"""
    angles = np.arange(rows)[:, None] * rope_frequencies(z_head_dim, base)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def rope_frequencies(z_head_dim: int, base: float) -> np.ndarray:
    """``base^(-2j / zh)`` for j = 0..zh/2-1, which a checkpoint repeats as ``rope.freqs``."""
    return base ** (-np.arange(0, z_head_dim, 2) / z_head_dim)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))  # does not overflow, and keeps tiny values exact
