"""Generating text: prefill, then sample and decode until something says stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from gecko_mlc.runtime.sampling import Sampler
from gecko_mlc.runtime.stop_strings import StopStrings
from gecko_mlc.runtime.tokenizer import Tokenizer


class GenerationError(ValueError):
    """A request that cannot be generated from."""


class SequenceLike(Protocol):
    """The part of an engine's sequence used here."""

    @property
    def position(self) -> int:
        """Tokens read so far."""
        ...

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Read tokens, at least one; logits [V] after the last."""
        ...


class EngineLike(Protocol):
    """The part of an engine used here."""

    @property
    def samples_on_device(self) -> bool:
        """Whether there is ``steps``."""
        ...

    def steps(
        self, sequences: list[Any], tokens: list[int], samplers: list[Sampler]
    ) -> Iterator[list[int]]:
        """Read ``tokens``, then the tokens sampled, on and on: those of each step."""
        ...

    def decode(self, sequences: list[Any], tokens: list[int]) -> np.ndarray:
        """Read one token in each of B sequences; logits [B, V]."""
        ...


@dataclasses.dataclass
class Statistics:
    """Counts and seconds of one generation; the consumer's time between pieces is not counted."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Tokens a second, 0 before there are any."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first, which prefill gives; 0 before there are any."""
        steps = self.generated_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds else 0.0

    def __str__(self) -> str:
        return (
            f"prompt: {self.prompt_tokens} tokens, {self.prefill_seconds:.3f} s, "
            f"{self.prefill_rate:.1f} tokens/s; generated: {self.generated_tokens} tokens, "
            f"{self.decode_seconds:.3f} s, {self.decode_rate:.1f} tokens/s"
        )


class Generation:
    """Continues a prompt; iterate over it for pieces of text, none of them empty.

    ``prompt_ids`` are read into ``sequence``, a sequence of ``engine``, and shown to ``sampler``
    (which a conversation keeps between turns). Stop tokens and strings are not part of the text;
    ``max_tokens`` None goes on until something else ends it. Afterwards ``finish_reason`` is
    ``"stop"`` for a stop token or string, ``"length"`` for ``max_tokens``, or ``"cancelled"``, and
    ``pending`` is the token chosen that ``sequence`` has not read, if any: put it before the next
    prompt to continue. GenerationError for an empty prompt.
    """

    def __init__(
        self,
        engine: EngineLike,
        sequence: SequenceLike,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        *,
        max_tokens: int | None = None,
        stop_token_ids: Collection[int] = (),
        stop_strings: Sequence[str] = (),
    ) -> None:
        if not len(prompt_ids):
            raise GenerationError("the prompt has no tokens, wanted at least one to start from")
        if max_tokens is not None and max_tokens < 1:
            raise GenerationError(f"max_tokens is {max_tokens}, wanted at least 1")
        self.finish_reason: str | None = None
        self.pending: list[int] = []
        self.token_ids: list[int] = []
        self.statistics = Statistics(prompt_tokens=len(prompt_ids))
        self._engine = engine
        self._sequence = sequence
        self._prompt_ids = prompt_ids
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._stop_token_ids = frozenset(stop_token_ids)
        self._text = tokenizer.stream(prompt_ids)
        self._stops = StopStrings(stop_strings)
        self._cancelled = False
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        """End after the step being computed. May be called from a signal handler or a thread."""
        self._cancelled = True

    def _run(self) -> Iterator[str]:
        tokens = self._tokens(self._prefill())
        while self.finish_reason is None:
            start = time.perf_counter()
            piece = self._accept(next(tokens))
            self.statistics.decode_seconds += time.perf_counter() - start
            if piece:
                yield piece

    def _prefill(self) -> np.ndarray:
        start = time.perf_counter()
        logits = self._sequence.prefill(self._prompt_ids)
        self._sampler.observe(self._prompt_ids)
        self.statistics.prefill_seconds = time.perf_counter() - start
        return logits

    def _tokens(self, logits: np.ndarray) -> Iterator[int]:
        """Tokens chosen one after the other, the first from ``logits``."""
        engine, sequences, sampler = self._engine, [self._sequence], self._sampler
        while True:
            token = sampler.sample(logits)
            self.pending = [token]
            yield token
            self.pending = []
            if engine.samples_on_device and sampler.on_device:
                break
            logits = engine.decode(sequences, [token])[0]
        for sampled in engine.steps(sequences, [token], [sampler]):
            yield sampled[0]

    def _accept(self, token: int) -> str:
        """Add a token; the text that can be given out now, all of it after the last token."""
        self.token_ids.append(token)
        self.statistics.generated_tokens += 1
        piece = ""
        if token in self._stop_token_ids:
            self.finish_reason = "stop"
        else:
            piece = self._stops.push(self._text.push(token))
            if self._stops.stopped:
                self.finish_reason = "stop"
            elif self._cancelled:
                self.finish_reason = "cancelled"
            elif self.statistics.generated_tokens == self._max_tokens:
                self.finish_reason = "length"
        if self.finish_reason is not None and not self._stops.stopped:
            piece += self._stops.push(self._text.finish()) + self._stops.finish()
        return piece
