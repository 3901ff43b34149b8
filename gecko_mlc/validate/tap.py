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

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._layer = -1
        self._rows: dict[str, list[np.ndarray]] = {}

    def __enter__(self) -> LibraryTap:
        self._engine.library.set_instrument(self._observe)
        return self

    def __exit__(self, *_exception) -> None:
        self._engine.library.set_instrument(None)

    def take(self, sequence: Sequence, count: int) -> dict[str, np.ndarray]:
        """The operations on the last ``count`` rows, all of ``sequence`` and of one chunk."""
        rows = {name: np.concatenate(parts) for name, parts in self._rows.items()}
        self._rows = {}
        config = self._engine.config
        last = np.arange(sequence.position - count, sequence.position) % (2 * config.chunk_size)
        rings = {op: self._engine.state[f"{op}s"].numpy() for op in ("key", "memory_key")}
        taken = {}
        for name, value in rows.items():
            taken[name] = value
            layer, _, op = name.rpartition(".")
            if op == "attention_inputs":  # [n, 3, S]
                del taken[name]
                taken[f"{layer}.query"] = value[:, :2].reshape(count, -1)
                taken[f"{layer}.memory_query"] = value[:, 2]
                number = int(layer.rpartition(".")[2])
                for ring, values in rings.items():
                    taken[f"{layer}.{ring}"] = values[number, sequence.slot, last]
        return taken

    def _observe(self, _function, kernel: str, before: bool, _result, *arguments) -> int:
        op = kernel.removesuffix("_step")
        if before or op not in _KERNELS:
            return 0  # go on
        if op == "embed":
            self._layer, name = -1, op
        else:
            self._layer += op == "timenorm"
            final = op == "logits" or self._layer == self._engine.config.num_layers
            name = f"output.{op}" if final else f"layers.{self._layer}.{op}"
        self._rows.setdefault(name, []).append(arguments[-1].numpy())
        return 0


def expected(
    config: GeckoConfig, taps: Mapping[str, torch.Tensor], position: int
) -> dict[str, np.ndarray]:
    """What the library's operations should be, from the reference's taps (``Gecko.forward``).

    The rows start at ``position`` and belong to one chunk. Queries and keys are rotated relative
    to the chunk, as the library keeps them: a query once by its index i, once by C + i.
    """
    rows = {name: tap[0] for name, tap in taps.items()}
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
        result[name] = value.numpy()
    return result
