"""The sampler against brute force, and its frequencies against chi-square."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gecko_mlc.runtime.sampling import (
    Sampler,
    SamplingError,
    SamplingParams,
    keep_largest,
    nucleus_size,
)

LOGITS = np.array([1.5, -0.5, 0.25, 1.5, -3.0, 0.75, 0.0, -1.0], np.float32)
# Exceeded by chance once in 10 000 (and the seeds are fixed), by degrees of freedom.
CHI_SQUARE = {1: 15.14, 2: 18.42, 3: 21.11, 7: 29.88}


def draws(count: int = 20000, **changes: float) -> np.ndarray:
    """How often each token came up."""
    sampler = Sampler(SamplingParams(seed=11, **changes))  # type: ignore[arg-type]
    return np.bincount([sampler.sample(LOGITS) for _ in range(count)], minlength=LOGITS.size)


def check_frequencies(counts: np.ndarray, probabilities: np.ndarray) -> None:
    possible = probabilities > 0.0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] / probabilities.sum() * counts.sum()
    statistic = float((((counts[possible] - expected) ** 2) / expected).sum())
    assert statistic < CHI_SQUARE[int(possible.sum()) - 1]


def brute_force_nucleus(weights: list[float], top_p: float) -> set[int]:
    """The likeliest one after another, earlier ones first among equals, until they hold enough."""
    order = sorted(range(len(weights)), key=lambda index: (-weights[index], index))
    kept: set[int] = set()
    for index in order:
        kept.add(index)
        if math.fsum(weights[i] for i in kept) >= top_p * math.fsum(weights):
            break
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    check_frequencies(draws(temperature=temperature), np.exp(LOGITS / temperature))


def test_top_k_keeps_the_first_of_equals() -> None:
    counts = draws(top_k=1)
    assert counts[0] == counts.sum()
    kept = np.isin(np.arange(8), [0, 3, 5])
    check_frequencies(draws(top_k=3), np.where(kept, np.exp(LOGITS), 0.0))
    check_frequencies(draws(top_k=8), np.exp(LOGITS))
    check_frequencies(draws(top_k=1000), np.exp(LOGITS))


def test_top_p_of_what_top_k_left() -> None:
    weights = np.exp(LOGITS.astype(np.float64) / 0.8)
    nucleus = brute_force_nucleus(weights.tolist(), 0.8)
    assert nucleus == {0, 3, 5}
    kept = np.isin(np.arange(8), list(nucleus))
    check_frequencies(draws(temperature=0.8, top_p=0.8), np.where(kept, weights, 0.0))
    # The two likeliest hold 0.7 of the four likeliest, though not of all.
    four = np.where(np.isin(np.arange(8), [0, 3, 5, 2]), np.exp(LOGITS), 0.0)
    wanted = brute_force_nucleus(four.tolist(), 0.7)
    assert wanted == {0, 3} != brute_force_nucleus(np.exp(LOGITS).tolist(), 0.7)
    counts = draws(top_k=4, top_p=0.7)
    check_frequencies(counts, np.where(np.isin(np.arange(8), [0, 3]), np.exp(LOGITS), 0.0))


WEIGHTS = st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any)


@given(WEIGHTS, st.integers(1, 31))
def test_nucleus_is_the_brute_force_one(weights: list[int], parts: int) -> None:
    # Halves and integers, so that sums are exact and ties common.
    array = np.array(weights, np.float64)
    kept = keep_largest(array, nucleus_size(array, parts / 32))
    wanted = brute_force_nucleus([float(weight) for weight in weights], parts / 32)
    assert {int(index) for index in np.flatnonzero(kept)} == wanted
    np.testing.assert_array_equal(kept[list(wanted)], array[list(wanted)])


@given(WEIGHTS, st.integers(1, 12))
def test_largest_are_the_sorted_ones(weights: list[int], count: int) -> None:
    count = min(count, len(weights))
    order = sorted(range(len(weights)), key=lambda index: (-weights[index], index))
    wanted = [weight if i in order[:count] else 0 for i, weight in enumerate(weights)]
    assert keep_largest(np.array(weights, np.float64), count).tolist() == wanted


def test_greedy_takes_the_first_of_the_largest_whatever_the_seed() -> None:
    for seed in (None, 0, 1):
        sampler = Sampler(SamplingParams(temperature=0.0, top_k=3, top_p=0.1, seed=seed))
        assert [sampler.sample(LOGITS) for _ in range(5)] == [0] * 5
    tied = np.full(32000, -2.0, np.float32)
    tied[[777, 31999]] = 5.0
    assert Sampler(SamplingParams(temperature=0.0)).sample(tied) == 777


def test_small_temperatures_approach_greedy_without_overflow() -> None:
    logits = np.array([-1e38, 3e38, 2.9e38, -np.inf], np.float32)
    for temperature in (1e-3, 1e-300, 5e-324):
        sampler = Sampler(SamplingParams(temperature=temperature, seed=0))
        assert {sampler.sample(logits) for _ in range(20)} == {1}


def test_the_same_seed_repeats_and_another_does_not() -> None:
    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.sample(LOGITS) for _ in range(64)]

    runs = [tokens(seed) for seed in (0, 1, 2**70, None, None)]
    assert tokens(0) == runs[0] and tokens(2**70) == runs[2]
    assert all(left != right for left, right in pairwise(runs))


def test_repetition_penalty_divides_above_zero_and_multiplies_below() -> None:
    logits = np.array([3.0, 2.5, -1.0, -1.5, 0.0])
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0))
    assert sampler.sample(logits) == 0
    assert sampler.sample(logits) == 1  # 3.0 is now 1.5
    assert sampler.sample(logits) == 0  # 1.5 against 1.25
    sampler.observe([4, 2, 2])
    np.testing.assert_allclose(sampler._penalized(logits), [1.5, 1.25, -2.0, -1.5, 0.0])
    assert logits.tolist() == [3.0, 2.5, -1.0, -1.5, 0.0]
    # A prompt may hold ids past the logits, which then have no logit to change.
    sampler.observe([70000])
    np.testing.assert_allclose(sampler._penalized(logits), [1.5, 1.25, -2.0, -1.5, 0.0])


def test_penalty_changes_frequencies_as_it_says() -> None:
    penalized = LOGITS.astype(np.float64)
    for token in (0, 4):
        penalized[token] *= 0.5 if penalized[token] > 0 else 2.0
    params = SamplingParams(repetition_penalty=2.0, seed=5)
    counts = np.zeros(8, int)
    for seed in range(4000):
        sampler = Sampler(SamplingParams(**{**vars(params), "seed": seed}))
        sampler.observe([0, 4])
        counts[sampler.sample(LOGITS)] += 1
    check_frequencies(counts, np.exp(penalized))


def test_impossible_tokens_are_never_chosen() -> None:
    logits = np.full(100, -np.inf)
    logits[[7, 50]] = 0.0, -30.0
    sampler = Sampler(SamplingParams(temperature=5.0, top_p=0.999999, seed=0))
    assert {sampler.sample(logits) for _ in range(200)} <= {7, 50}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.0, math.nan, 1.0], "of 3 logits 1 are NaN and 0 infinite"),
        ([math.nan, math.inf, 1.0], "of 3 logits 1 are NaN and 1 infinite"),
        ([0.0, 1.0, math.inf], "of 3 logits 0 are NaN and 1 infinite"),
        ([-math.inf, -math.inf], "all 2 logits are -inf"),
        ([], "all 0 logits"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers(bad: list[float], message: str, temperature: float) -> None:
    with pytest.raises(SamplingError, match=message):
        Sampler(SamplingParams(temperature=temperature)).sample(np.array(bad, np.float32))


def test_every_parameter_out_of_range_is_named() -> None:
    with pytest.raises(SamplingError) as caught:
        SamplingParams(temperature=-1.0, top_k=-2, top_p=0.0, repetition_penalty=0.0, seed=-1)
    for name in ("temperature is -1.0", "top_k is -2", "top_p is 0.0", "penalty is 0.0", "seed is"):
        assert name in str(caught.value)
    for wrong in ({"temperature": math.nan}, {"top_p": 1.5}, {"repetition_penalty": math.inf}):
        with pytest.raises(SamplingError, match=next(iter(wrong))):
            SamplingParams(**wrong)  # type: ignore[arg-type]


def test_what_a_device_chooses_by() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=3)
    first, second = Sampler(params), Sampler(params)
    assert first.on_device
    rows = [first.draw() for _ in range(1000)]
    assert rows == [second.draw() for _ in range(1000)]
    assert {row[:2] for row in rows} == {(0.8, 0.9)}
    points = np.array([row[2] for row in rows])
    assert (points == points.astype(np.float32)).all(), "what float32 would round to 1 is not 1"
    assert 0.0 <= points.min() < 0.01 and 0.99 < points.max() < 1.0
    assert Sampler(SamplingParams(temperature=0.0)).draw() == (0.0, 1.0, 0.0)
    assert not Sampler(SamplingParams(top_k=5)).on_device
    assert not Sampler(SamplingParams(repetition_penalty=1.1)).on_device
