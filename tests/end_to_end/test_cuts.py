"""However a sequence is cut, batched and interleaved with others, its logits are the same.

Pieces of different lengths take different paths through the kernels, which add the same numbers in
another order: in float32 that moves a row of logits by at most 7e-7 of its norm (measured). Of the
mistakes a cut could bring about, leaving out one key of the window moves it by 1.8e-5 in the model
that shows it least, wrong priors, rotations or memory by more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Model, ModelBuilder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_streams import distance
from test_configurations import FIVE_HEADS, weights

from gecko_mlc.runtime.engine import Engine, Sequence

TOLERANCE = 3e-6
SLOTS = 3


@dataclasses.dataclass
class Text:
    """Tokens, and the logits after each of them in one pass."""

    tokens: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass
class Texts:
    engine: Engine
    long: list[Text]


@pytest.fixture(scope="module", params=["tiny", "alt", "five_heads"])
def texts(request: pytest.FixtureRequest, build_model: ModelBuilder) -> Texts:
    model: Model
    if request.param == "five_heads":
        model = build_model("five_heads", FIVE_HEADS, weights(FIVE_HEADS), "q0f32")
    else:
        model = request.getfixturevalue(f"{request.param}_model")
    return texts_of(Engine(*model, threads=1, slots=SLOTS))


@pytest.fixture(scope="module")
def texts_on_vulkan(lavapipe_model: Callable[[str, str], Model]) -> Texts:
    return texts_of(Engine(*lavapipe_model("tiny", "q0f32"), device="vulkan", slots=SLOTS))


def texts_of(engine: Engine) -> Texts:
    rng = np.random.default_rng(0)
    long = []
    for _ in range(SLOTS):
        tokens = rng.integers(0, engine.config.vocab_size, 4 * engine.config.chunk_size + 2)
        with engine.new_sequence() as sequence:
            long.append(Text(tokens, sequence.score(tokens)))
    return Texts(engine, long)


@dataclasses.dataclass
class Reader:
    """A sequence on its way to ``length`` tokens of a text."""

    sequence: Sequence
    text: Text
    length: int

    @property
    def left(self) -> int:
        return self.length - self.sequence.position

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The next tokens and the logits wanted after them."""
        here = slice(self.sequence.position, self.sequence.position + count)
        return self.text.tokens[here], self.text.logits[here]


def step(engine: Engine, readers: list[Reader], data: st.DataObject) -> None:
    """One call of the engine, drawn: decode some sequences together, or a piece of one."""
    chosen = data.draw(st.permutations(readers).map(tuple), "order")
    kind = data.draw(st.sampled_from(["decode", "prefill", "score"]), "call")
    if kind == "decode":
        batch = chosen[: data.draw(st.integers(1, len(chosen)), "batch")]
        taken = [reader.take(1) for reader in batch]
        logits = engine.decode(
            [reader.sequence for reader in batch], [int(tokens[0]) for tokens, _ in taken]
        )
        for row, (_, wanted) in zip(logits, taken, strict=True):
            assert distance(row, wanted[0]) < TOLERANCE
        return
    reader, chunk = chosen[0], engine.config.chunk_size
    sizes = st.one_of(
        st.integers(1, reader.left), st.sampled_from([1, 2, 7, 8, chunk - 1, chunk, chunk + 1])
    )
    tokens, wanted = reader.take(min(reader.left, data.draw(sizes, "size")))
    if kind == "prefill":
        assert distance(reader.sequence.prefill(tokens), wanted[-1]) < TOLERANCE
    else:
        assert distance(reader.sequence.score(tokens), wanted) < TOLERANCE


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_cut_order_and_batch(texts: Texts, data: st.DataObject) -> None:
    read_in_pieces(texts, data)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_cut_order_and_batch_on_vulkan(texts_on_vulkan: Texts, data: st.DataObject) -> None:
    read_in_pieces(texts_on_vulkan, data)


def read_in_pieces(texts: Texts, data: st.DataObject) -> None:
    """Some texts up to lengths that are drawn, in calls that are drawn."""
    engine = texts.engine
    chunk = engine.config.chunk_size
    boundaries = [1, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk - 1, 3 * chunk + 1]
    lengths = data.draw(
        st.lists(
            st.one_of(st.sampled_from(boundaries), st.integers(1, 4 * chunk + 2)),
            min_size=1,
            max_size=SLOTS,
        ),
        "lengths",
    )
    readers = [
        Reader(engine.new_sequence(), text, length)
        for text, length in zip(texts.long, lengths, strict=False)
    ]
    try:
        for _ in range(60):
            unfinished = [reader for reader in readers if reader.left]
            if not unfinished:
                break
            step(engine, unfinished, data)
        for reader in readers:
            if reader.left:
                tokens, wanted = reader.take(reader.left)
                assert distance(reader.sequence.prefill(tokens), wanted[-1]) < TOLERANCE
    finally:
        for reader in readers:
            reader.sequence.close()


def test_every_cut_in_two_around_boundaries(texts: Texts) -> None:
    cut_in_two_around_boundaries(texts)


def test_every_cut_in_two_around_boundaries_on_vulkan(texts_on_vulkan: Texts) -> None:
    cut_in_two_around_boundaries(texts_on_vulkan)


def cut_in_two_around_boundaries(texts: Texts) -> None:
    engine, text = texts.engine, texts.long[0]
    chunk = engine.config.chunk_size
    length = 3 * chunk + 1
    for cut in sorted({c * chunk + d for c in (1, 2, 3) for d in (-1, 0, 1)} - {length}):
        with engine.new_sequence() as sequence:
            sequence.prefill(text.tokens[:cut])
            found = sequence.score(text.tokens[cut:length])
            assert distance(found, text.logits[cut:length]) < TOLERANCE


def test_token_by_token(texts: Texts) -> None:
    """Decoding alone, three sequences at different positions from the first token on."""
    engine = texts.engine
    steps = 3 * engine.config.chunk_size + 2
    sequences = [engine.new_sequence() for _ in range(SLOTS)]
    try:
        for delay, (sequence, text) in enumerate(zip(sequences, texts.long, strict=True)):
            sequence.prefill(text.tokens[: 5 * delay + 1])
        for _ in range(steps):
            here = [sequence.position for sequence in sequences]
            rows = engine.decode(
                sequences, [int(text.tokens[p]) for text, p in zip(texts.long, here, strict=True)]
            )
            for row, text, p in zip(rows, texts.long, here, strict=True):
                assert distance(row, text.logits[p]) < TOLERANCE
    finally:
        for sequence in sequences:
            sequence.close()
