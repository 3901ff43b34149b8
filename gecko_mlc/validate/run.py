"""The comparison itself: the same tokens through a library and through the reference in float64.

A library that computes in 16 bits is held to what the reference loses in that type: the same tokens
go through a second reference, and its differences from float64 stand beside the library's.
"""

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
from gecko_mlc.validate.compare import Difference, Prediction
from gecko_mlc.validate.gpu_tap import GpuTap
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
# Sequences at a time: prefill's, and decode's two.
SLOTS = 3
LOGITS = "output.logits"
_CPU = torch.device("cpu")
_DTYPES = {"q0f32": torch.float32, "q0f16": torch.float16, "q0bf16": torch.bfloat16}


class ValidationError(ValueError):
    """A comparison that cannot be made; the message says why."""


@dataclasses.dataclass
class Comparison:
    """What a path gave against the reference in float64.

    ``ops`` and ``state`` by name, in the order of computation; ``start`` and ``stop`` are the
    positions read on this path (the state is that of ``stop``).
    """

    start: int
    stop: int
    ops: dict[str, Difference] = dataclasses.field(default_factory=dict)
    state: dict[str, Difference] = dataclasses.field(default_factory=dict)
    prediction: Prediction = dataclasses.field(default_factory=Prediction)

    def add(
        self,
        found: Mapping[str, np.ndarray],
        wanted: Mapping[str, np.ndarray],
        following: np.ndarray,
    ) -> None:
        """Rows of operations by name, and the tokens that follow the rows' own."""
        for name, rows in wanted.items():
            self.ops.setdefault(name, Difference()).add(found[name], rows)
        self.prediction.add(found[LOGITS], wanted[LOGITS], following)

    def add_state(self, found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
        for name, value in wanted.items():
            self.state.setdefault(name, Difference()).add(found[name], value)


@dataclasses.dataclass
class Model:
    """The reference: in float64, and for a library that computes in 16 bits in its type too."""

    exact: Gecko
    rounded: Gecko | None


def own_reference(
    engine: Engine, arrays: Mapping[str, np.ndarray], device: torch.device = _CPU
) -> Model:
    """The reference with the weights the library runs, rounded as they are stored.

    ``arrays`` are the library's parameters by name, as ``runtime.weights.stored_arrays`` has them.
    """
    tensors = unfold(engine.config, engine.metadata["quantization"], arrays)
    return _reference(engine, tensors, device)


def checkpoint_reference(engine: Engine, checkpoint: Path, device: torch.device = _CPU) -> Model:
    """The reference with a checkpoint's own weights, before any rounding."""
    config, tensors = open_checkpoint(checkpoint)
    wanted, found = engine.config.to_dict(), config.to_dict()
    faults = [
        f"{name} is {found[name]}, wanted {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]
    if faults:
        raise ValidationError(f"{checkpoint} is another model:\n  " + "\n  ".join(faults))
    return _reference(engine, tensors, device)


def _reference(engine: Engine, tensors: Mapping[str, np.ndarray], device: torch.device) -> Model:
    doubles = {
        name: torch.from_numpy(np.array(tensor, np.float64)).to(device)
        for name, tensor in tensors.items()
    }
    computes_in = torch.float32
    if engine.samples_on_device:  # a CPU's activations are float32 whatever the matrices are
        computes_in = _DTYPES[engine.metadata["quantization"]]
    try:
        exact = Gecko.from_tensors(engine.config, doubles, torch.float64)
        if computes_in == torch.float32:
            return Model(exact, None)
        return Model(exact, Gecko.from_tensors(engine.config, doubles, computes_in))
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
    reference: Model,
    tokens: np.ndarray,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> dict[str, Comparison]:
    """The library against the reference on ``tokens`` [n], as prefill and as decode.

    Prefill reads all tokens, in pieces that end at chunk boundaries and elsewhere; its operations
    are compared up to ``op_tokens``, its logits to the end. Decode starts from a copy of its
    sequence shortly before a chunk boundary and steps across it; where steps are replayed as a
    graph, once more in that way. With a rounded reference its own differences on both paths are
    there too, as "rounded prefill" and "rounded decode". The engine needs ``SLOTS`` slots.
    ``on_tokens`` is told the tokens of every piece that is done.
    """
    config, length = engine.config, len(tokens)
    start, stop = decode_range(config, length)
    paths = {"prefill": Comparison(0, length), "decode": Comparison(start, stop)}
    if reference.rounded is not None:
        paths |= {f"rounded {path}": Comparison(c.start, c.stop) for path, c in paths.items()}
    exact, rounded = _Reader(reference.exact), _Reader(reference.rounded)
    with engine.new_sequence() as prefill, torch.inference_mode():
        decode: _Decode | None = None
        for first, last in pieces(config, length):
            piece, following = tokens[first:last], tokens[first + 1 : last + 1]
            if first == start:
                decode = _Decode(engine, prefill)
            tapped = first < op_tokens(config)
            wanted = exact.read(piece, tapped)
            if not tapped:
                found = {LOGITS: prefill.score(piece)}
            else:
                with _tap(engine) as tap:
                    prefill.score(piece)
                    found = tap.take(prefill, last - first)
            paths["prefill"].add(found, wanted, following)
            if decode is not None:
                stepped, hidden = decode.read(piece)
                seen = {name: rows for name, rows in wanted.items() if name not in hidden}
                paths["decode"].add(stepped, seen, following)
            if rounded.there:
                lost = rounded.read(piece, tapped)
                paths["rounded prefill"].add(lost, wanted, following)
                if decode is not None:
                    paths["rounded decode"].add(lost, wanted, following)
            if decode is not None and last == stop:
                state = exact.state()
                paths["decode"].add_state(library_state(engine, decode.sequence), state)
                if rounded.there:
                    paths["rounded decode"].add_state(rounded.state(), state)
                decode.close()
                decode = None
            on_tokens(last - first)
        paths["prefill"].add_state(library_state(engine, prefill), exact.state())
        if rounded.there:
            paths["rounded prefill"].add_state(rounded.state(), exact.state())
    return paths


class _Reader:
    """A reference reading one sequence piece by piece."""

    def __init__(self, model: Gecko | None) -> None:
        self._model = model
        self._state: State | None = None

    @property
    def there(self) -> bool:
        return self._model is not None

    def read(self, piece: np.ndarray, tapped: bool) -> dict[str, np.ndarray]:
        """Every operation on the piece's rows, or the logits alone."""
        assert self._model is not None
        position = 0 if self._state is None else self._state.position
        taps: dict[str, torch.Tensor] | None = {} if tapped else None
        tokens = torch.from_numpy(piece).long()[None].to(self._model.embed.weight.device)
        logits, self._state = self._model(tokens, self._state, taps)
        if taps is None:
            return {LOGITS: logits[0].cpu().numpy()}
        return expected(self._model.config, taps, position)

    def state(self) -> dict[str, np.ndarray]:
        """What the sequence has left behind, by name."""
        assert self._state is not None
        tensors = {
            f"layers.{i}.state.{name}": tensor[0]
            for i, layer in enumerate(self._state.layers)
            for name, tensor in {
                "mean": layer.timenorm_mean,
                "var": layer.timenorm_var,
                "cema": torch.view_as_real(layer.cema),
                "memory": layer.memory,
                "log_norm": layer.log_norm,
            }.items()
        }
        tensors["output.state.mean"] = self._state.output_mean[0]
        tensors["output.state.var"] = self._state.output_var[0]
        tensors["position"] = torch.tensor([self._state.position])
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


class _Decode:
    """Copies of a sequence that read on token by token: one kernel by kernel, and where steps are
    replayed as a graph another one in that way."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self.sequence = sequence.fork()
        self._replayed = sequence.fork() if engine.samples_on_device else None

    def read(self, piece: np.ndarray) -> tuple[dict[str, np.ndarray], set[str]]:
        """The operations on the piece's rows by name, and the names of those that stay hidden."""
        engine = self._engine
        with _tap(engine) as tap:
            for token in piece:
                engine.decode([self.sequence], [token])
            found = tap.take(self.sequence, len(piece))
        if self._replayed is not None:
            logits = [engine.decode([self._replayed], [token]) for token in piece]
            found[LOGITS] = np.concatenate(logits)
        hidden = {name for name in op_names(engine.config) if _op(name) in tap.hidden_in_decode}
        return found, hidden

    def close(self) -> None:
        self.sequence.close()
        if self._replayed is not None:
            self._replayed.close()


def _op(name: str) -> str:
    return name.rpartition(".")[2]


def _tap(engine: Engine) -> LibraryTap:
    return GpuTap(engine) if engine.samples_on_device else LibraryTap(engine)


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


def library_state(engine: Engine, sequence: Sequence) -> dict[str, np.ndarray]:
    """A sequence's recurrent state as the library keeps it, by name."""
    found = {name: tensor.numpy() for name, tensor in engine.state.items()}
    slot, last = sequence.slot, engine.config.num_layers
    state = {
        f"layers.{i}.state.{name}": found[name][i, slot]
        for i in range(last)
        for name in ("mean", "var", "cema", "memory", "log_norm")
    }
    state["output.state.mean"] = found["mean"][last, slot]
    state["output.state.var"] = found["var"][last, slot]
    state["position"] = found["position"][slot : slot + 1]
    return state
