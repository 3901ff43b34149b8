"""The PyTorch reference as something to time, and torch.matmul on the model's own shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from gecko_mlc.bench.calls import Calls
from gecko_mlc.bench.timing import Action
from gecko_mlc.checkpoint import random_checkpoint
from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko
from gecko_mlc.reference.state import State

# Weights that torch.matmul cycles through, so that like the model's they do not stay in a cache.
_COLD_BYTES = {"cpu": 64 * 2**20, "cuda": 256 * 2**20}


class Reference:
    """Actions on the reference in float32 with ``threads`` threads, last logits only.

    Its weights are random: converted weights cannot be unfolded, and their values cost nothing.
    """

    def __init__(self, config: GeckoConfig, threads: int) -> None:
        torch.set_num_threads(threads)
        source = random_checkpoint(config)
        tensors = {name: torch.from_numpy(source[name]) for name in source}
        self._model = Gecko.from_tensors(config, tensors)

    def prefill(self, tokens: np.ndarray) -> Action:
        """The last logits of ``tokens`` from position 0 on."""
        return self._forward([torch.from_numpy(tokens)[None].long()], self._at(0, 1))

    def decode(self, tokens: np.ndarray, position: int, batch: int = 1) -> Action:
        """``tokens`` one after the other, the same for each of ``batch`` sequences."""
        steps = [torch.full((batch, 1), int(token)) for token in tokens]
        return self._forward(steps, self._at(position, batch))

    def _forward(self, steps: list[torch.Tensor], start: State) -> Action:
        @torch.inference_mode()
        def run() -> None:
            state = start  # its tensors are overwritten by each run, with numbers of no interest
            for tokens in steps:
                _, state = self._model(tokens, state, last_logits_only=True)

        return Action(run)

    @torch.inference_mode()
    def _at(self, position: int, batch: int) -> State:
        state = self._model.start(batch)
        state.position = position
        for layer in state.layers:
            # Pages never written to would all be one page of zeros, which is read from a cache.
            for window in (layer.key, layer.value, layer.memory_key):
                window.fill_(0.5)
        return state


def multiplications(
    products: Mapping[str, tuple[int, int, int, int]], dtype: torch.dtype, device: torch.device
) -> Calls:
    """torch.matmul on ``products``, name to (m, k, n, how many): x [m, k] times w [n, k]^T."""
    generator = torch.Generator(device).manual_seed(0)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=dtype, device=device)

    calls = {}
    for name, (m, k, n, times) in products.items():
        copies = min(times, -(-_COLD_BYTES[device.type] // (dtype.itemsize * k * n)))
        weights = [random(n, k) for _ in range(copies)]
        x = random(m, k)
        calls[name] = [partial(torch.matmul, x, weights[i % copies].T) for i in range(times)]
    return calls
