"""What each kernel of a library wrote, and what the reference says it should have.

Both sides give arrays [n, .] by the names of DESIGN's operations ("layers.0.timenorm"), for n rows
of one sequence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference.ops import rotary, rotation
from gecko_mlc.runtime.engine import Engine, Sequence

# Operations of a layer in the order they run; query, key, memory_query and memory_key are what
# the kernel attention_inputs writes.
LAYER_OPS = (
    "timenorm",
    "cema",
    "rmsnorm",
    "wv",
    "wzrh",
    "query",
    "key",
    "memory_query",
    "memory_key",
    "attention",
    "wh2",
    "layernorm",
    "fc1",
    "fc2",
)
_KERNELS = {*LAYER_OPS, "embed", "attention_inputs", "logits"}


def op_names(config: GeckoConfig) -> list[str]:
    """Every operation of the model, in order."""
    layers = [f"layers.{i}.{op}" for i in range(config.num_layers) for op in LAYER_OPS]
    return ["embed", *layers, "output.timenorm", "output.logits"]


class LibraryTap:
    """Listens to an engine's kernels while it is open (a context manager).

    Every tensor is copied to the host, so it serves any device.
    """

    # Operations that a decode step of the library does inside another kernel.
    hidden_in_decode: frozenset[str] = frozenset()

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._layer = -1
        self._rows: dict[str, list[np.ndarray]] = {}
        self._listening = engine.observe(self._observe)

    def __enter__(self) -> LibraryTap:
        self._listening.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        self._listening.__exit__(*exception)

    def take(self, sequence: Sequence, count: int) -> dict[str, np.ndarray]:
        """The operations on the last ``count`` rows, all of ``sequence`` and of one chunk."""
        taken = {name: np.concatenate(parts) for name, parts in self._rows.items()}
        self._rows = {}
        config = self._engine.config
        last = np.arange(sequence.position - count, sequence.position) % (2 * config.chunk_size)
        for op in ("key", "memory_key"):
            ring = self._engine.state[f"{op}s"].numpy()
            for layer in range(config.num_layers):
                taken[f"layers.{layer}.{op}"] = ring[layer, sequence.slot, last]
        return taken

    def _keep(self, op: str, value: np.ndarray, layer: int | None = None) -> None:
        """Rows of an operation of a layer (default: the one being computed)."""
        layer = self._layer if layer is None else layer
        if op == "embed":
            name = op
        elif op == "logits" or layer == self._engine.config.num_layers:
            name = f"output.{op}"
        else:
            name = f"layers.{layer}.{op}"
        self._rows.setdefault(name, []).append(value)

    def _observe(self, _function, kernel: str, before: bool, _result, *arguments) -> int:
        if not before:
            self._look(kernel, arguments)
        return 0  # go on

    def _look(self, kernel: str, arguments: tuple) -> None:
        """At what a kernel has written."""
        op = kernel.removesuffix("_step")
        if op not in _KERNELS:
            return
        value = arguments[-1].numpy()
        if op == "embed":
            self._layer = -1
        self._layer += op == "timenorm"
        if op == "attention_inputs":  # [n, 3, S]
            self._keep("query", value[:, :2].reshape(len(value), -1))
            self._keep("memory_query", value[:, 2])
        else:
            self._keep(op, value)


def expected(
    config: GeckoConfig, taps: Mapping[str, torch.Tensor], position: int
) -> dict[str, np.ndarray]:
    """What the library's operations should be, from the reference's taps (``Gecko.forward``).

    The rows start at ``position`` and belong to one chunk. Queries and keys are rotated relative
    to the chunk, as the library keeps them: a query once by its index i, once by C + i.
    """
    rows = {name: tap[0].cpu() for name, tap in taps.items()}
    count, chunk = len(rows["embed"]), config.chunk_size
    heads = (config.num_heads, config.z_head_dim)

    def turned(x: torch.Tensor, index: int) -> torch.Tensor:  # [n, S]
        turns = rotation(
            index, count, config.z_head_dim, config.rope_base, x.dtype, torch.device("cpu")
        )
        return rotary(x.unflatten(-1, heads)[None], turns, config.rope_heads)[0].flatten(-2)

    result = {}
    for name in op_names(config):
        layer, _, op = name.rpartition(".")
        if op == "query":
            query, index = rows[f"{layer}.znorm_qk"], position % chunk
            value = torch.cat([turned(query, index), turned(query, chunk + index)], -1)
        elif op == "key":
            value = turned(rows[name], position % chunk)
        elif op == "memory_query":
            value = torch.softmax(rows[name].unflatten(-1, heads), -1).flatten(-2)
        elif op == "attention":
            gate = rows[f"{layer}.wzrh"][:, config.z_dim : config.z_dim + config.value_dim]
            value = rows[name] * gate + rows[f"{layer}.memory_read"]
        else:
            value = rows[name]
        result[name] = value.double().numpy()
    return result
