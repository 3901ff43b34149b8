"""A compiled library as something to time: prefill, decode at any position, score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gecko_mlc.bench.timing import Action
from gecko_mlc.runtime.engine import Engine, Sequence
from gecko_mlc.runtime.sampling import Sampler, SamplingParams
from tir_kernels.cost import Cost, Span, Work

# The costs of one call, by operation.
Forward = Callable[[Work], dict[str, Cost]]

_ITEMSIZE = {"q0f32": 4, "q0f16": 2, "q0bf16": 2}


class Compiled:
    """Actions on ``engine``, whose slots it uses from the first on.

    A position is reached by setting it: neither shapes nor traffic depend on what the state holds,
    and position 100 000 costs no hundred thousand tokens of prefill.
    """

    def __init__(self, engine: Engine, slots: int) -> None:
        self.engine = engine
        self._sequences = [engine.new_sequence() for _ in range(slots)]

    def at(self, position: int, batch: int = 1) -> list[Sequence]:
        """``batch`` sequences that stand at ``position``."""
        positions = self.engine.state["position"]
        positions.copyfrom(np.full(positions.shape, position, np.int32))
        for sequence in self._sequences:
            sequence.position = position
        return self._sequences[:batch]

    def prefill(self, tokens: np.ndarray, cublaslt: bool = False) -> Action:
        """The last logits of ``tokens`` from position 0 on."""
        sequence = self._sequences[0]
        return self._with_products(lambda: sequence.prefill(tokens), cublaslt)

    def score(self, tokens: np.ndarray, cublaslt: bool = False) -> Action:
        """All logits of ``tokens`` from position 0 on."""
        sequence = self._sequences[0]
        return self._with_products(lambda: sequence.score(tokens), cublaslt)

    def _with_products(self, run: Callable[[], object], cublaslt: bool) -> Action:
        def prepare() -> None:
            self.at(0)
            self.engine.cublaslt = cublaslt

        return Action(run, prepare)

    def decode(self, tokens: np.ndarray, position: int, batch: int = 1) -> Action:
        """``tokens`` one after the other, the same for each of ``batch`` sequences."""
        sequences = self._sequences[:batch]
        steps = [[int(token)] * batch for token in tokens]

        def run() -> None:
            for step in steps:
                self.engine.decode(sequences, step)

        return Action(run, lambda: self.at(position))

    def generate(self, tokens: np.ndarray, position: int, batch: int = 1) -> Action:
        """As ``decode``; where the device samples, as many steps with tokens of its own choice.

        There it takes two tokens or more.
        """
        if not self.engine.samples_on_device:
            return self.decode(tokens, position, batch)
        sequences, first = self._sequences[:batch], [int(tokens[0])] * batch
        samplers = [Sampler(SamplingParams(temperature=0.0)) for _ in sequences]

        def run() -> None:
            steps = self.engine.steps(sequences, first, samplers)
            for _ in tokens[1:]:
                next(steps)  # begins one step more than it gives
            self.engine.library.device.sync()

        return Action(run, lambda: self.at(position))

    def work(self, spans: tuple[Span, ...], logits_rows: int) -> Work:
        """What a call on ``spans`` works on, for ``tir_kernels.cost``."""
        itemsize = _ITEMSIZE[self.engine.metadata["quantization"]]
        return Work(self.engine.config, itemsize, spans, logits_rows)

    def prefill_costs(
        self, tokens: int, forward: Forward, commit: Forward, all_logits: bool = False
    ) -> dict[str, Cost]:
        """By operation, of ``prefill`` (of ``score``: ``all_logits``) of so many tokens."""
        chunk = self.engine.config.chunk_size
        total: dict[str, Cost] = {}
        for start in range(0, tokens, chunk):
            rows = min(chunk, tokens - start)
            _add(total, forward(self.work((Span(start, rows),), rows if all_logits else 1)))
            if rows == chunk and start >= chunk:
                _add(total, commit(self.work((Span(start + chunk, 0),), 0)))
        return total

    def decode_costs(self, position: int, batch: int, forward: Forward) -> dict[str, Cost]:
        """By operation, of one step of ``decode``; the memory's update, once a chunk, apart."""
        costs = forward(self.work((Span(position),) * batch, batch))
        return {name: cost for name, cost in costs.items() if name != "last_row"}


def _add(total: dict[str, Cost], more: dict[str, Cost]) -> None:
    for name, cost in more.items():
        total[name] = total.get(name, Cost()) + cost
