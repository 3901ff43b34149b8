"""How far two arrays are apart, gathered piece by piece."""

from __future__ import annotations

import math

import numpy as np


class Difference:
    """The difference of found values from expected ones, over everything added."""

    def __init__(self) -> None:
        self.count = 0
        self.not_finite = 0  # places where found is not finite and not what was expected
        self.max_abs = 0.0
        self._squares = 0.0
        self._found = 0.0
        self._expected = 0.0
        self._product = 0.0

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Two arrays of one shape."""
        if found.shape != expected.shape:
            raise AssertionError(f"the library gave {found.shape}, wanted {expected.shape}")
        found, expected = found.astype(np.float64), expected.astype(np.float64)
        # An empty memory's log-normaliser is -inf on both sides.
        finite = np.isfinite(found) & np.isfinite(expected)
        self.not_finite += int(np.count_nonzero(~finite & (found != expected)))
        found, expected = np.where(finite, found, 0.0), np.where(finite, expected, 0.0)
        difference = found - expected
        self.count += found.size
        self.max_abs = max(self.max_abs, float(np.abs(difference).max(initial=0.0)))
        self._squares += float(np.vdot(difference, difference))
        self._found += float(np.vdot(found, found))
        self._expected += float(np.vdot(expected, expected))
        self._product += float(np.vdot(found, expected))

    @property
    def relative(self) -> float:
        """Norm of the difference over norm of the expected values."""
        if self._squares == 0.0:
            return 0.0
        return math.sqrt(self._squares / self._expected) if self._expected else math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both; 1 between zeros."""
        size = math.sqrt(self._found) * math.sqrt(self._expected)
        return self._product / size if size else float(self._squares == 0.0)

    def within(self, tolerance: float) -> bool:
        return self.not_finite == 0 and self.relative <= tolerance


class Prediction:
    """How well two sets of logits agree about the next token."""

    def __init__(self) -> None:
        self.rows = 0
        self.agreed = 0
        self.predicted = 0
        self.loss_found = 0.0  # nats, over the predicted tokens
        self.loss_expected = 0.0

    def add(self, found: np.ndarray, expected: np.ndarray, following: np.ndarray) -> None:
        """Logits [n, V], and the tokens [n or n - 1] that follow the rows' own."""
        self.rows += len(found)
        self.agreed += int(np.count_nonzero(found.argmax(-1) == expected.argmax(-1)))
        known = following < found.shape[1]  # fewer outputs than tokens: the rest has no logit
        self.predicted += int(np.count_nonzero(known))
        self.loss_found += _loss(found, following, known)
        self.loss_expected += _loss(expected, following, known)

    @property
    def agreement(self) -> float:
        """Share of the rows in which both find the same token likeliest."""
        return self.agreed / self.rows

    def loss_within(self, tolerance: float) -> bool:
        """Whether the losses per token differ by at most that; no for what is not a number."""
        return abs(self.loss_found - self.loss_expected) <= tolerance * self.predicted


def _loss(logits: np.ndarray, tokens: np.ndarray, known: np.ndarray) -> float:
    rows = np.flatnonzero(known)
    chosen = logits[rows].astype(np.float64)
    peak = chosen.max(-1, initial=-np.inf, keepdims=True)
    logarithms = np.log(np.exp(chosen - peak).sum(-1)) + peak[:, 0]
    return float((logarithms - chosen[np.arange(len(rows)), tokens[rows]]).sum())
