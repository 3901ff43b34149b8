"""Generation with an engine that is a table: every text it makes can be told beforehand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gecko_mlc.runtime.generation import Generation, GenerationError
from gecko_mlc.runtime.sampling import Sampler, SamplingError, SamplingParams
from gecko_mlc.runtime.stop_strings import StopStringError, StopStrings
from gecko_mlc.runtime.tokenizer import ByteTokenizer

GREEDY = SamplingParams(temperature=0.0)


class Recital:
    """A sequence whose greedy continuation is a given text, then tokens 300 for ever."""

    def __init__(self, text: str | bytes) -> None:
        self.script = text.encode() if isinstance(text, str) else text
        self.read: list[int] = []
        self.start = 0

    @property
    def position(self) -> int:
        return len(self.read)

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        self.read += tokens
        self.start = len(self.read)
        return self.logits()

    def logits(self) -> np.ndarray:
        done = len(self.read) - self.start
        logits = np.zeros(301, np.float32)
        logits[self.script[done] if done < len(self.script) else 300] = 1.0
        return logits


class TableEngine:
    samples_on_device = False

    def steps(
        self, sequences: list[Recital], tokens: list[int], samplers: list[Sampler]
    ) -> Iterator[list[int]]:
        raise AssertionError("this engine leaves sampling to its caller")

    def decode(self, sequences: list[Recital], tokens: list[int]) -> np.ndarray:
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.read.append(token)
        return np.stack([sequence.logits() for sequence in sequences])


class SteppingEngine(TableEngine):
    """Samples by itself, one step ahead of the tokens it gives."""

    samples_on_device = True

    def steps(
        self, sequences: list[Recital], tokens: list[int], samplers: list[Sampler]
    ) -> Iterator[list[int]]:
        assert not any(sampler.draw()[0] for sampler in samplers), "greedy ones only"
        sampled = self.decode(sequences, tokens).argmax(-1).tolist()
        while True:
            following = self.decode(sequences, sampled).argmax(-1).tolist()
            yield sampled
            sampled = following


def generation(
    sequence: Recital,
    prompt: str = "Say: ",
    engine: TableEngine | None = None,
    **options: object,
) -> Generation:
    tokenizer = ByteTokenizer()
    options.setdefault("stop_token_ids", [300])
    return Generation(
        engine or TableEngine(),
        sequence,
        tokenizer,
        tokenizer.encode(prompt),
        Sampler(GREEDY),
        **options,  # type: ignore[arg-type]
    )


def test_tokens_sampled_on_the_device() -> None:
    sequence = Recital("naïve 🦎")
    run = generation(sequence, engine=SteppingEngine())
    assert "".join(run) == "naïve 🦎"
    assert run.finish_reason == "stop" and run.token_ids == [*"naïve 🦎".encode(), 300]
    # The stop token was read as well: nothing is left to be put before the next prompt.
    assert bytes(sequence.read[:-1]) == "Say: naïve 🦎".encode() and sequence.read[-1] == 300
    assert run.pending == []

    sequence = Recital("ab")
    run = generation(sequence, engine=SteppingEngine(), max_tokens=1)
    assert "".join(run) == "a" and run.finish_reason == "length"
    assert run.pending == list(b"a") and sequence.read == list(b"Say: ")

    # A repetition penalty is the host's business.
    run = generation(Recital("abc"), engine=SteppingEngine(), max_tokens=3)
    run._sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=1.0001))
    assert "".join(run) == "abc" and run.pending == list(b"c")


def test_a_text_until_the_stop_token() -> None:
    sequence = Recital("naïve 🦎")
    run = generation(sequence)
    pieces = list(run)
    assert "".join(pieces) == "naïve 🦎" and all(pieces)
    assert "🦎" in pieces and "ï" in pieces
    assert run.finish_reason == "stop"
    assert run.token_ids == [*"naïve 🦎".encode(), 300]
    # Everything but the stop token was read, each token once.
    assert sequence.read == list("Say: naïve 🦎".encode()) and run.pending == [300]
    assert run.statistics.prompt_tokens == 5
    assert run.statistics.generated_tokens == len("naïve 🦎".encode()) + 1
    assert run.statistics.prefill_seconds > 0.0 and run.statistics.decode_seconds > 0.0
    assert run.statistics.decode_rate > 0.0 and "generated: 12 tokens" in str(run.statistics)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_max_tokens(count: int) -> None:
    sequence = Recital("abcdefgh")
    run = generation(sequence, max_tokens=count)
    assert "".join(run) == "abcdefgh"[:count]
    assert run.finish_reason == "length" and run.pending == [ord("abcdefgh"[count - 1])]
    assert sequence.position == 5 + count - 1


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    run = generation(Recital("a🦎"), max_tokens=3)
    assert "".join(run) == "a\ufffd"


def test_pending_continues_a_sequence_exactly() -> None:
    whole = Recital("abcdefgh")
    list(generation(whole, max_tokens=8))
    parts = Recital("abcdefgh")
    first = generation(parts, max_tokens=3)
    list(first)
    parts.script = b"defgh"
    tokens = first.pending
    run = Generation(TableEngine(), parts, ByteTokenizer(), tokens, Sampler(GREEDY), max_tokens=5)
    assert "".join(run) == "defgh"
    assert whole.read == parts.read


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_cancelling_and_leaving_early_keep_the_tokens_straight(taken: int) -> None:
    sequence = Recital("abcdefgh")
    run = generation(sequence)
    pieces = []
    for piece in run:
        pieces.append(piece)
        if len(pieces) > taken:
            run.cancel()
    assert run.finish_reason == "cancelled"
    assert sequence.read + run.pending == list(b"Say: " + "".join(pieces).encode())

    sequence = Recital("abcdefgh")
    run = generation(sequence)
    iterator = iter(run)
    shown = "".join(next(iterator) for _ in range(taken + 1))
    assert sequence.read + run.pending == list(b"Say: " + shown.encode())
    assert run.finish_reason is None


def test_stop_strings_are_held_back_while_they_may_come() -> None:
    sequence = Recital("one two END three")
    run = generation(sequence, stop_strings=["END", "never"])
    pieces = list(run)
    assert "".join(pieces) == "one two " and run.finish_reason == "stop"
    assert not any("E" in piece for piece in pieces)
    run = generation(Recital("one EN EN"), stop_strings=["END"])
    assert "".join(run) == "one EN EN" and run.finish_reason == "stop"
    run = generation(Recital("one END"), stop_strings=["END"], max_tokens=6)
    assert "".join(run) == "one EN" and run.finish_reason == "length"


def brute_force(text: str, stops: list[str]) -> str:
    """Character by character: does any stop string end here?"""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


LETTERS = st.text("abc", max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.lists(LETTERS, max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_do_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    filtered = StopStrings(stops)
    shown = ""
    text = ""
    for piece in pieces:
        shown += filtered.push(piece)
        text += piece
        wanted = brute_force(text, stops)
        assert wanted.startswith(shown)
        # What is held back could still begin a stop string, or nothing is.
        held = wanted[len(shown) :]
        assert filtered.stopped or not held or any(stop.startswith(held) for stop in stops)
    assert filtered.stopped == (brute_force(text, stops) != text or text.endswith(tuple(stops)))
    assert shown + filtered.finish() == brute_force(text, stops)


def test_the_penalty_counts_prompt_and_answer() -> None:
    sequence = Recital("aab")
    params = SamplingParams(temperature=0.0, repetition_penalty=1e9)
    tokenizer = ByteTokenizer()
    run = Generation(
        TableEngine(), sequence, tokenizer, tokenizer.encode("b"), Sampler(params), max_tokens=3
    )
    list(run)
    # The second a and the b (in the prompt) are divided to almost 0, yet above all others' 0.
    assert run.token_ids == list(b"aab")
    sequence = Recital("aab")
    sequence.logits = lambda: np.where(np.arange(301) == ord("a"), 1.0, 0.5)  # type: ignore[method-assign]
    run = Generation(
        TableEngine(),
        sequence,
        tokenizer,
        tokenizer.encode("b"),
        Sampler(SamplingParams(temperature=0.0, repetition_penalty=4.0)),
        max_tokens=3,
    )
    list(run)
    assert run.token_ids == [ord("a"), 0, 1]


def test_sampling_with_a_seed_repeats() -> None:
    class Even(Recital):
        def logits(self) -> np.ndarray:
            return np.linspace(0.0, 1.0, 128, dtype=np.float32)

    def text(seed: int) -> str:
        tokenizer = ByteTokenizer()
        sampler = Sampler(SamplingParams(seed=seed))
        prompt = tokenizer.encode("x")
        run = Generation(TableEngine(), Even(""), tokenizer, prompt, sampler, max_tokens=40)
        return "".join(run)

    assert text(1) == text(1) != text(2)


def test_faulty_requests() -> None:
    with pytest.raises(GenerationError, match="the prompt has no tokens"):
        generation(Recital("a"), prompt="")
    with pytest.raises(GenerationError, match="max_tokens is 0, wanted at least 1"):
        generation(Recital("a"), max_tokens=0)
    with pytest.raises(StopStringError, match="a stop string is empty"):
        generation(Recital("a"), stop_strings=["x", ""])
    broken = Recital("a")
    broken.logits = lambda: np.full(301, np.nan)  # type: ignore[method-assign]
    with pytest.raises(SamplingError, match=re.escape("of 301 logits 301 are NaN")):
        list(generation(broken))
