"""Choosing the next token from logits, in numpy and repeatably."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np


class SamplingError(ValueError):
    """Sampling parameters out of range (all of them listed), or logits that are not numbers."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to choose a token. The defaults are the model's own distribution.

    ``temperature`` 0 takes the most likely token. ``top_k`` 0 and ``top_p`` 1 leave the choice
    open. ``repetition_penalty`` (CTRL, arXiv 1909.05858) divides positive logits of tokens seen
    before, and multiplies negative ones; 1 is none. ``seed`` None takes one from the system.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        faults = []
        if not 0.0 <= self.temperature < math.inf:
            faults.append(f"temperature is {self.temperature}, wanted 0 (greedy) or more")
        if self.top_k != int(self.top_k) or self.top_k < 0:
            faults.append(f"top_k is {self.top_k}, wanted 0 (all) or a positive integer")
        if not 0.0 < self.top_p <= 1.0:
            faults.append(f"top_p is {self.top_p}, wanted a number above 0, at most 1 (all)")
        if not 0.0 < self.repetition_penalty < math.inf:
            faults.append(
                f"repetition_penalty is {self.repetition_penalty}, wanted a positive number, 1 for "
                "none"
            )
        if self.seed is not None and self.seed < 0:
            faults.append(f"seed is {self.seed}, wanted 0 or more")
        if faults:
            raise SamplingError("sampling parameters out of range: " + "; ".join(faults))


class Sampler:
    """Chooses one token after another; the same seed, logits and tokens give the same choices.

    It remembers which tokens it was shown or chose (a flag per entry of the vocabulary), for the
    repetition penalty.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._generator = np.random.default_rng(params.seed)
        self._seen = np.zeros(0, bool)

    def observe(self, tokens: Iterable[int]) -> None:
        """Count ``tokens`` (of a prompt, say) as seen."""
        ids = np.fromiter(tokens, np.int64)
        if ids.size and ids.max() >= self._seen.size:
            self._seen = np.pad(self._seen, (0, int(ids.max()) + 1 - self._seen.size))
        self._seen[ids] = True

    @property
    def on_device(self) -> bool:
        """Whether a device can choose in its stead: from temperature, top_p and ``draw`` alone."""
        return self.params.top_k == 0 and self.params.repetition_penalty == 1.0

    def draw(self) -> tuple[float, float, float]:
        """Temperature, top_p and a random number in [0, 1): what a device chooses a token by."""
        params = self.params
        greedy = params.temperature == 0.0
        point = 0.0 if greedy else float(self._generator.random(dtype=np.float32))
        return params.temperature, params.top_p, point

    def sample(self, logits: np.ndarray) -> int:
        """The next token from its logits [V]. Ties go to the lowest index.

        In order: repetition penalty, temperature, top-k, top-p of what top-k left.
        SamplingError when a logit is NaN or +inf, or all are -inf (a single -inf is a token that
        cannot be chosen).
        """
        scores = np.asarray(logits, np.float64).reshape(-1)
        best = scores.max(initial=-np.inf)  # NaN when any is
        if not np.isfinite(best):
            raise SamplingError(_fault(scores))
        scores = self._penalized(scores)
        token = int(np.argmax(scores))
        if self.params.temperature > 0.0:
            token = self._draw(scores)
        self.observe([token])
        return token

    def _penalized(self, scores: np.ndarray) -> np.ndarray:
        penalty = self.params.repetition_penalty
        if penalty == 1.0:
            return scores
        seen = np.zeros(scores.size, bool)
        known = self._seen[: scores.size]
        seen[: known.size] = known
        return np.where(seen, np.where(scores > 0.0, scores / penalty, scores * penalty), scores)

    def _draw(self, scores: np.ndarray) -> int:
        params = self.params
        with np.errstate(over="ignore"):  # a tiny temperature may send a quotient to -inf
            weights = np.exp((scores - scores.max()) / params.temperature)
        if 0 < params.top_k < weights.size:
            weights = keep_largest(weights, params.top_k)
        if params.top_p < 1.0:
            weights = keep_largest(weights, nucleus_size(weights, params.top_p))
        cumulative = np.cumsum(weights)
        point = self._generator.random() * cumulative[-1]
        # First entry above the point; rounding must not lead past the last one with a weight.
        index = int(np.searchsorted(cumulative, point, side="right"))
        return min(index, int(np.searchsorted(cumulative, cumulative[-1])))


def nucleus_size(weights: np.ndarray, top_p: float) -> int:
    """How many of the largest weights [V] it takes to hold ``top_p`` of their sum."""
    cumulative = np.cumsum(np.sort(weights)[::-1])
    return min(int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1, weights.size)


def keep_largest(weights: np.ndarray, count: int) -> np.ndarray:
    """``weights`` [V] with all but the ``count`` largest at 0; of equals the first are kept."""
    threshold = np.partition(weights, weights.size - count)[weights.size - count]
    above = weights > threshold
    ties = np.flatnonzero(weights == threshold)[: count - int(np.count_nonzero(above))]
    above[ties] = True
    return np.where(above, weights, 0.0)


def _fault(scores: np.ndarray) -> str:
    nan, positive = int(np.isnan(scores).sum()), int(np.isposinf(scores).sum())
    if nan or positive:
        return (
            f"of {scores.size} logits {nan} are NaN and {positive} infinite: the weights, the "
            "library or the device is at fault (gecko-mlc validate tells which op)"
        )
    return f"all {scores.size} logits are -inf: there is no token to choose"
