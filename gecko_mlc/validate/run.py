"""The comparison itself: the same tokens through a library and through the reference in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from gecko_mlc.checkpoint import mapping, open_checkpoint
from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko, State
from gecko_mlc.runtime.engine import Engine, Sequence
from gecko_mlc.runtime.weights import stored_arrays
from gecko_mlc.validate.compare import Difference, Prediction
from gecko_mlc.validate.tap import LibraryTap, expected, op_names
from gecko_mlc.validate.unfold import unfold

# The tokens go through both in pieces of at most this many: memory for what their operations
# give, float64 included, stays in the hundreds of megabytes.
PIECE = 256
# Multiplications that a run without a text may cost the reference: about a minute on two cores.
_MULTIPLICATIONS = 4e11
# Decode steps before and after the chunk boundary that they cross.
_STEPS_BEFORE, _STEPS_AFTER = 16, 48

PATHS = ("prefill", "decode")


class ValidationError(ValueError):
    """A comparison that cannot be made; the message says why."""


@dataclasses.dataclass
class Comparison:
    """What a path of the library gave against the reference.

    ``ops`` and ``state`` by name, in the order of computation; ``start`` and ``stop`` are the
    positions read on this path (the state is that of ``stop``).
    """

    start: int
    stop: int
    ops: dict[str, Difference]
    state: dict[str, Difference]
    prediction: Prediction

    @classmethod
    def empty(cls, config: GeckoConfig, start: int, stop: int) -> Comparison:
        ops = {name: Difference() for name in op_names(config)}
        return cls(start, stop, ops, {}, Prediction())


def own_reference(engine: Engine, folder: Path) -> Gecko:
    """The reference in float64 with the weights the library runs: rounded as they are stored."""
    quantization = engine.metadata["quantization"]
    tensors = unfold(engine.config, quantization, stored_arrays(folder))
    return _reference(engine.config, tensors)


def checkpoint_reference(engine: Engine, checkpoint: Path) -> Gecko:
    """The reference in float64 with a checkpoint's own weights, before any rounding."""
    config, tensors = open_checkpoint(checkpoint)
    wanted, found = engine.config.to_dict(), config.to_dict()
    faults = [
        f"{name} is {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]
    if faults:
        raise ValidationError(f"{checkpoint} is another model:\n  " + "\n  ".join(faults))
    return _reference(config, tensors)


def _reference(config: GeckoConfig, tensors: Mapping[str, np.ndarray]) -> Gecko:
    doubles = {
        name: torch.from_numpy(np.array(tensor, np.float64)) for name, tensor in tensors.items()
    }
    try:
        return Gecko.from_tensors(config, doubles, torch.float64)
    except RuntimeError as error:
        raise ValidationError(f"the checkpoint does not fit its configuration: {error}") from error


def default_tokens(config: GeckoConfig, count: int | None = None) -> np.ndarray:
    """Pseudo-random tokens, always the same: three and a quarter chunks and three, or ``count``.

    Memory is first written at the end of the second chunk, first read in the third, and first
    written over at its end. Fewer tokens when so many would take the reference long.
    """
    if count is None:
        matrices = mapping.parameters(config, "q0f32")
        weights = sum(math.prod(matrix.shape) for matrix in matrices if len(matrix.shape) == 2)
        count = min(13 * config.chunk_size // 4 + 3, max(64, int(_MULTIPLICATIONS / weights)))
    return np.random.default_rng(0).integers(0, config.vocab_size, count, dtype=np.int32)


def compare(
    engine: Engine,
    reference: Gecko,
    tokens: np.ndarray,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> dict[str, Comparison]:
    """The library against the reference on ``tokens`` [n], as prefill and as decode.

    Prefill reads all tokens, in pieces that end at chunk boundaries and elsewhere; its operations
    are compared up to ``op_tokens``, its logits to the end. Decode starts from a copy of its
    sequence shortly before a chunk boundary and steps across it. The engine needs two slots.
    ``on_tokens`` is told the tokens of every piece that is done.
    """
    config, length = engine.config, len(tokens)
    start, stop = decode_range(config, length)
    paths = {
        "prefill": Comparison.empty(config, 0, length),
        "decode": Comparison.empty(config, start, stop),
    }
    state: State | None = None
    with engine.new_sequence() as prefill, torch.inference_mode():
        decode = None
        for first, last in pieces(config, length):
            piece, following = tokens[first:last], tokens[first + 1 : last + 1]
            if first == start:
                decode = prefill.fork()
            taps: dict[str, torch.Tensor] | None = {} if first < op_tokens(config) else None
            logits, state = reference(torch.from_numpy(piece).long()[None], state, taps)
            if taps is None:
                rows = {"output.logits": logits[0].numpy()}
                _add(paths["prefill"], {"output.logits": prefill.score(piece)}, rows, following)
                on_tokens(last - first)
                continue
            wanted = expected(config, taps, first)
            with LibraryTap(engine) as tap:
                prefill.score(piece)
                _add(paths["prefill"], tap.take(prefill, last - first), wanted, following)
            if decode is not None:
                with LibraryTap(engine) as tap:
                    for token in piece:
                        engine.decode([decode], [token])
                    _add(paths["decode"], tap.take(decode, last - first), wanted, following)
                if last == stop:
                    paths["decode"].state = compare_state(engine, decode, state)
                    decode.close()
                    decode = None
            on_tokens(last - first)
        assert state is not None
        paths["prefill"].state = compare_state(engine, prefill, state)
    return paths


def op_tokens(config: GeckoConfig) -> int:
    """How many tokens' operations are compared: past the third chunk, and all that decode reads.

    A long text goes on with its logits alone, several times as fast.
    """
    return 13 * config.chunk_size // 4 + _STEPS_AFTER


def decode_range(config: GeckoConfig, length: int) -> tuple[int, int]:
    """Positions that decode reads: across a chunk boundary, the third for the sake of memory."""
    chunk = config.chunk_size
    boundary = next((b for b in (3 * chunk, 2 * chunk, chunk) if b < length), None)
    if boundary is None:
        return length // 2, length
    return boundary - min(_STEPS_BEFORE, chunk // 2), min(boundary + _STEPS_AFTER, length)


def pieces(config: GeckoConfig, length: int) -> Iterator[tuple[int, int]]:
    """Where tokens are cut: at every chunk's end, at decode's, and once inside the first chunk."""
    cuts = {0, length, *range(0, length, config.chunk_size), *decode_range(config, length)}
    cuts |= {min(cut, length) for cut in (config.chunk_size // 3, op_tokens(config))}
    ordered = sorted(cuts)
    for first, last in zip(ordered, ordered[1:], strict=False):
        for begin in range(first, last, PIECE):
            yield begin, min(begin + PIECE, last)


def _add(
    comparison: Comparison,
    found: dict[str, np.ndarray],
    wanted: dict[str, np.ndarray],
    following: np.ndarray,
) -> None:
    for name, rows in wanted.items():
        comparison.ops[name].add(found[name], rows)
    logits = "output.logits"
    comparison.prediction.add(found[logits], wanted[logits], following)


def compare_state(engine: Engine, sequence: Sequence, state: State) -> dict[str, Difference]:
    """A sequence's state tensors against the reference's after the same tokens."""
    found = {name: tensor.numpy() for name, tensor in engine.state.items()}
    slot = sequence.slot
    wanted = {
        f"layers.{i}.state.{name}": (found[name][i, slot], tensor)
        for i, layer in enumerate(state.layers)
        for name, tensor in {
            "mean": layer.timenorm_mean,
            "var": layer.timenorm_var,
            "cema": torch.view_as_real(layer.cema),
            "memory": layer.memory,
            "log_norm": layer.log_norm,
        }.items()
    }
    last = len(state.layers)
    wanted["output.state.mean"] = found["mean"][last, slot], state.output_mean
    wanted["output.state.var"] = found["var"][last, slot], state.output_var
    wanted["position"] = found["position"][slot : slot + 1], torch.tensor([[state.position]])
    differences = {name: Difference() for name in wanted}
    for name, (value, tensor) in wanted.items():
        differences[name].add(value, tensor[0].numpy())
    return differences
