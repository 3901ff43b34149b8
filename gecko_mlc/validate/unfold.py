"""From a library's converted weights back to a state dict in the reference's names.

The inverse of ``checkpoint.mapping``, so that the reference computes with exactly what the library
reads: matrices rounded to the quantization's dtype, folded constants rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np

from gecko_mlc.checkpoint import mapping
from gecko_mlc.checkpoint.mapping import Parameter
from gecko_mlc.config import GeckoConfig

# Where float64's sigmoid is exactly 0 and exactly 1: a folded value that float32 rounded to
# either end has no finite logit.
_LOGIT_OF_ZERO, _LOGIT_OF_ONE = -800.0, 40.0


def unfold(
    config: GeckoConfig, quantization: str, parameters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The state dict, in float64, whose conversion gives ``parameters``.

    ``parameters`` are the compiled library's, by name (``mapping.parameters``). Folding the result
    again gives them to float32's rounding; what the mapping makes from nothing (the rotary table,
    norm weights without ``norm_affine``) is not in it.
    """
    tensors: dict[str, np.ndarray] = {}
    for parameter in mapping.parameters(config, quantization):
        value = np.asarray(parameters[parameter.name]).astype(np.float64)
        if parameter.fold is None:
            tensors.update(_split(parameter, value))
        elif parameter.fold is mapping.cema_p:
            tensors[parameter.sources[0].name] = _logit(value)
        elif parameter.fold is mapping.cema_q:
            alpha, delta, theta = (source.name for source in parameter.sources)
            # p itself, not alpha: that was clipped.
            p = np.asarray(parameters[parameter.name[:-1] + "p"]).astype(np.float64)
            tensors[delta], tensors[theta] = _delta(p, value), _theta(value)
        elif parameter.sources:
            tensors[parameter.sources[0].name] = _unfold_one(config, parameter, value)
    return tensors


def _split(parameter: Parameter, value: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors whose rows were put under one another."""
    heights = [source.shape[0] for source in parameter.sources]
    blocks = np.split(value, np.cumsum(heights)[:-1])
    return {source.name: block for source, block in zip(parameter.sources, blocks, strict=True)}


def _unfold_one(config: GeckoConfig, parameter: Parameter, value: np.ndarray) -> np.ndarray:
    fold = parameter.fold.func if isinstance(parameter.fold, partial) else parameter.fold
    if fold is mapping.plus_one:
        return value - 1.0
    if fold is mapping.whole_count:
        return value.reshape(())
    assert fold is mapping.attention_scale, parameter.name
    return value * math.sqrt(config.z_head_dim) - 1.0


def _delta(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """delta [D, N] with ``|q| = 1 - p sigmoid(delta)``; p [D, N], q [D, N, 2].

    Rounding can leave |q| a little above 1 or below 1 - p: the nearest delta is taken.
    """
    decay = np.clip(1.0 - np.hypot(q[..., 0], q[..., 1]), 0.0, p)
    return _logit(np.divide(decay, p, out=np.zeros_like(p), where=p > 0.0))


def _theta(q: np.ndarray) -> np.ndarray:
    """theta [D] such that mode n of q [D, N, 2] has the phase ``n sigmoid(theta) 2 pi / N``.

    All modes are used, by least squares: a rounding of mode n's phase counts n times less.
    """
    modes = q.shape[1]
    weighted, weight = np.zeros(q.shape[0]), np.zeros(q.shape[0])
    for n in range(1, modes + 1):
        re, im = q[:, n - 1, 0], q[:, n - 1, 1]
        # Mode n's phase lies between 0 and 2 pi n / N; which side of zero it was rounded to,
        # the modes before it know.
        middle = np.full(q.shape[0], n * math.pi / modes)
        guess = np.divide(n * weighted, weight, out=middle, where=weight > 0.0)
        phase = np.arctan2(im, re)
        phase += 2.0 * math.pi * np.round((guess - phase) / (2.0 * math.pi))
        size = re * re + im * im
        weighted += n * size * phase
        weight += n * n * size
    base = np.divide(weighted, weight, out=np.zeros_like(weight), where=weight > 0.0)
    return _logit(np.clip(base * modes / (2.0 * math.pi), 0.0, 1.0))


def _logit(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(x) - np.log1p(-x), _LOGIT_OF_ZERO, _LOGIT_OF_ONE)
