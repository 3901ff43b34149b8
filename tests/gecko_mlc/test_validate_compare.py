"""The figures of a comparison against their definitions, and how tokens are cut."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gecko_mlc.config import GeckoConfig
from gecko_mlc.validate.compare import Difference, Prediction
from gecko_mlc.validate.report import make_report, table
from gecko_mlc.validate.run import PIECE, Comparison, decode_range, default_tokens, pieces


@given(cuts=st.lists(st.integers(0, 40), max_size=4).map(sorted), scale=st.floats(1e-6, 1e3))
def test_figures_do_not_depend_on_pieces(cuts: list[int], scale: float) -> None:
    generator = np.random.default_rng(0)
    expected = generator.standard_normal((40, 3))
    found = (expected + scale * generator.standard_normal((40, 3))).astype(np.float32)
    difference = Difference()
    for found_part, part in zip(np.split(found, cuts), np.split(expected, cuts), strict=True):
        difference.add(found_part, part)
    apart = found - expected
    assert difference.count == 120 and difference.not_finite == 0
    assert difference.max_abs == np.abs(apart).max()
    relative = float(np.linalg.norm(apart) / np.linalg.norm(expected))
    assert difference.relative == pytest.approx(relative)
    cosine = torch.cosine_similarity(
        torch.tensor(found.ravel()).double(), torch.tensor(expected.ravel()), dim=0
    )
    assert difference.cosine == pytest.approx(cosine.item(), abs=1e-9)
    assert difference.within(relative * 1.001) and not difference.within(relative * 0.999)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes(value: float) -> None:
    difference = Difference()
    difference.add(np.array([1.0, value]), np.array([1.0, 2.0]))
    assert difference.not_finite == 1
    assert not difference.within(math.inf)


def test_infinities_that_are_expected() -> None:
    difference = Difference()
    difference.add(np.array([-math.inf, 3.0]), np.array([-math.inf, 3.0]))
    assert difference.within(0.0) and difference.relative == 0.0
    difference.add(np.array([1.0]), np.array([-math.inf]))
    assert not difference.within(1.0)


def test_zeros() -> None:
    same, other = Difference(), Difference()
    same.add(np.zeros(3), np.zeros(3))
    assert same.within(0.0) and same.cosine == 1.0
    other.add(np.full(3, 1e-30), np.zeros(3))
    assert other.relative == math.inf and other.cosine == 0.0


def test_prediction_against_torch() -> None:
    generator = np.random.default_rng(1)
    found, expected = (20 * generator.standard_normal((9, 7)) for _ in range(2))
    following = generator.integers(0, 7, 8)
    prediction = Prediction()
    prediction.add(found[:5], expected[:5], following[:5])
    prediction.add(found[5:], expected[5:], following[5:])  # the last row's token is not known
    assert (prediction.rows, prediction.predicted) == (9, 8)
    assert prediction.agreement == np.mean(found.argmax(1) == expected.argmax(1))
    target = torch.tensor(following)
    for loss, logits in ((prediction.loss_found, found), (prediction.loss_expected, expected)):
        wanted = torch.nn.functional.cross_entropy(torch.tensor(logits[:8]), target)
        assert loss / 8 == pytest.approx(wanted.item())
    apart = abs(prediction.loss_found - prediction.loss_expected) / 8
    assert prediction.loss_within(apart * 1.001) and not prediction.loss_within(apart * 0.999)
    prediction.loss_found = math.nan
    assert not prediction.loss_within(math.inf)


def test_tokens_that_have_no_logit_are_not_predicted() -> None:
    prediction = Prediction()
    logits = np.zeros((3, 4))
    prediction.add(logits, logits, np.array([3, 4, 0]))
    assert prediction.predicted == 2
    assert prediction.loss_found == pytest.approx(2 * math.log(4))


def config_of(chunk: int) -> GeckoConfig:
    return GeckoConfig.from_dict({**GeckoConfig.preset("tiny").to_dict(), "chunk_size": chunk})


@given(chunk=st.integers(1, 700), length=st.integers(1, 3000))
def test_pieces_cover_the_tokens_once(chunk: int, length: int) -> None:
    config = config_of(chunk)
    cut = list(pieces(config, length))
    assert cut[0][0] == 0 and cut[-1][1] == length
    assert all(left[1] == right[0] for left, right in pairwise(cut))
    for first, last in cut:
        assert first < last <= first + PIECE
        assert first // chunk == (last - 1) // chunk  # of one chunk
    start, stop = decode_range(config, length)
    assert 0 <= start < stop <= length
    assert start in [first for first, _ in cut] and stop in [last for _, last in cut]


@pytest.mark.parametrize("chunk", [32, 48, 64, 512])
def test_default_tokens_write_memory_over(chunk: int) -> None:
    config = config_of(chunk)
    tokens = default_tokens(config)
    assert len(tokens) > 3 * chunk and tokens.dtype == np.int32
    assert tokens.min() >= 0 and tokens.max() < config.vocab_size
    start, stop = decode_range(config, len(tokens))
    assert start < 3 * chunk < stop
    np.testing.assert_array_equal(default_tokens(config, 10), default_tokens(config, 12)[:10])


def test_default_tokens_of_a_large_model_are_fewer() -> None:
    assert len(default_tokens(GeckoConfig.preset("7b"))) == 64


@pytest.mark.parametrize("share, passed", [(1.4, True), (1.6, False)])
def test_a_16_bit_library_is_held_to_pytorch_in_that_type(share: float, passed: bool) -> None:
    """On each path by what PyTorch loses there; operations a path keeps to itself are left out."""
    generator = np.random.default_rng(0)
    exact, noise = generator.standard_normal((2, 9, 7))
    paths: dict[str, Comparison] = {}
    for path, ops in (("prefill", ["embed", "output.logits"]), ("decode", ["output.logits"])):
        lost, found = Comparison(0, 9), Comparison(0, 9)
        scale = 0.01 if path == "prefill" else 0.02
        wanted = dict.fromkeys(ops, exact)
        lost.add(dict.fromkeys(ops, exact + scale * noise), wanted, np.arange(8) % 7)
        found.add(dict.fromkeys(ops, exact - share * scale * noise), wanted, np.arange(8) % 7)
        paths |= {path: found, f"rounded {path}": lost}
    report = make_report({}, paths, config_of(64), "q0bf16", checkpoint=False, text=None)
    assert report.failed == ([] if passed else ["output.logits"])
    logits = report.ops[1]
    assert logits.tolerances["decode"] == pytest.approx(2 * logits.tolerances["prefill"], rel=1e-6)
    text = "\n".join(table(report))
    assert f"the library's is {share:.2f} of it" in text
    assert "inside another kernel" in text.split("output.logits")[0]
