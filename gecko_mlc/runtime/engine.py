"""Running a compiled library: sequences in state slots, prefill and decode.

Imports the TVM runtime only, never the compiler, never PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import cuda, sequence_file
from gecko_mlc.runtime.library import Library, LibraryError, set_threads
from gecko_mlc.runtime.memory import TensorMemory
from gecko_mlc.runtime.sampling import Sampler
from gecko_mlc.runtime.steps import Steps
from gecko_mlc.runtime.weights import load_parameters

_MAX_POSITION = 2**31 - 1
_MAX_STRIDE = 2**31 - 1  # elements of a state tensor from layer to layer


class SequenceError(ValueError):
    """A request that a sequence or an engine cannot serve."""


class Engine:
    """A model on a device, with room for ``slots`` sequences at a time.

    The state's size depends on ``slots`` alone, never on how long a sequence is. ``threads`` CPU
    threads run the kernels (default: the library's, else one per core; the setting is the
    process's). ``weights`` gives the parameters for a model folder, the library and the memory to
    put them in. An engine and its sequences belong to one thread.

    ``cublaslt`` says whether prefill takes its matrix products from cuBLASLt: where library and
    machine have them, unless it is set to False.

    Raises LibraryError, WeightsError or ConfigError before anything runs when library, weights,
    configuration or machine do not fit together.
    """

    def __init__(
        self,
        model: str | Path,
        library: str | Path,
        device: str = "cpu",
        threads: int | None = None,
        slots: int = 1,
        weights: Callable[[Path, Library, TensorMemory], tvm_ffi.Array] = load_parameters,
    ) -> None:
        if slots < 1:
            raise SequenceError(f"slots is {slots}, wanted at least 1")
        folder = Path(model)
        self.library = Library(library, device)
        self.chat_config: dict[str, Any] = read_chat_config(folder)
        self.library.check_model(self.chat_config, folder / "mlc-chat-config.json")
        self.config: GeckoConfig = self.library.config
        set_threads(self.metadata["target"]["threads"] if threads is None else threads)
        self._memory = TensorMemory(self.library.device)
        self._parameters = weights(folder, self.library, self._memory)
        self._state = self._new_state(slots)
        self._free = list(range(slots))[::-1]
        self._steps: Steps | None = None
        if self.metadata["batches"]:
            self._steps = Steps(self.library, self._state, self._parameters)
        self._observed = False
        device = self.library.device
        self.cublaslt = self.metadata["cublaslt"] and cuda.open_cublaslt(device.index)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the library says of itself: config, quantization, target, versions, memory."""
        return self.library.metadata

    @property
    def state(self) -> dict[str, tvm.runtime.Tensor]:
        """The state's tensors ``[layers, slots, ...]`` by name, and ``position`` [slots]."""
        names = ["position"] + [row["name"] for row in self.metadata["state"]]
        return dict(zip(names, self._state, strict=True))

    def new_sequence(self) -> Sequence:
        """An empty sequence in a free slot; its ``close`` frees the slot."""
        if not self._free:
            raise SequenceError(
                f"all {self._state[0].shape[0]} slots are taken: close a sequence, or make the "
                "engine with more slots"
            )
        sequence = Sequence(self, self._free.pop())
        self._call("reset", sequence.slots, self._state, self._parameters)
        return sequence

    @property
    def parameters(self) -> dict[str, tvm.runtime.Tensor]:
        """The weights by the library's names for them, as its functions take them."""
        names = [row["name"] for row in self.metadata["params"]]
        return dict(zip(names, self._parameters, strict=True))

    @property
    def samples_on_device(self) -> bool:
        """Whether there is ``steps``."""
        return self._steps is not None

    def decode(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> np.ndarray:
        """One token for each of B sequences, each at its own position: logits [B, V] float32."""
        checked = self._checked_step(sequences, tokens)
        if self._steps is not None:
            slots = [sequence.slot for sequence in sequences]
            logits = self._steps.logits(slots, checked.tolist(), kernel_by_kernel=self._observed)
        else:
            one = len(sequences) == 1
            listed = sequences[0].slots if one else self._tensor([s.slot for s in sequences])
            logits = self._run("decode", self._tensor(checked), listed).numpy()
        self._move_on(sequences)
        return logits

    def steps(
        self,
        sequences: SequenceOf[Sequence],
        tokens: SequenceOf[int],
        samplers: SequenceOf[Sampler],
    ) -> Iterator[list[int]]:
        """Decode on and on, sampling on the device: the tokens [B] that each step sampled.

        The first step reads ``tokens``, every other one what the step before it sampled. Only the
        ids leave the device, and the step that reads them is under way when they are given out:
        a sequence has read every token that came of it, and whoever has enough stops asking.
        Meanwhile the engine may do anything else but step another batch of the same size.

        ``samplers``: one for each sequence, such as ``Sampler.on_device`` allows. Needs a library
        for which ``samples_on_device``.
        """
        checked = self._checked_step(sequences, tokens)
        largest = 0 if self._steps is None else self._steps.largest
        if self._steps is None or len(sequences) > largest:
            raise SequenceError(
                f"{len(sequences)} sequences at once: {self.library.path} samples for at most "
                f"{largest} of them on the device; sample from the logits that decode gives"
            )
        if len(samplers) != len(sequences) or not all(sampler.on_device for sampler in samplers):
            raise SequenceError(
                "wanted a sampler for each sequence, without top-k and repetition penalty"
            )
        batch = self._steps.batch(len(sequences))
        batch.load([sequence.slot for sequence in sequences], checked.tolist())
        loads, ahead = batch.loads, False
        while True:
            for sequence in sequences:
                sequence._check_room(1)
            if batch.loads != loads:
                raise SequenceError(
                    "the steps were ended by others of the same batch size: begin them anew"
                )
            batch.launch([sampler.draw() for sampler in samplers])
            self._move_on(sequences)
            sampled = batch.receive() if ahead else None
            batch.send()
            ahead = True
            if sampled is not None:
                yield sampled

    @contextlib.contextmanager
    def observe(self, instrument) -> Iterator[None]:
        """Call ``instrument(function, name, before, result, *arguments)`` around every kernel.

        Meanwhile kernels are launched one by one, never as a graph.
        """
        self.library.set_instrument(instrument)
        self._observed = True
        try:
            yield
        finally:
            self._observed = False
            self.library.set_instrument(None)

    def load_sequence(self, path: str | Path) -> Sequence:
        """A sequence that ``Sequence.save`` wrote with a library of the same model and dtype."""
        tensors = sequence_file.read(Path(path), self.metadata)
        sequence = self.new_sequence()
        values = tvm_ffi.convert([self._tensor(array, array.dtype) for array in tensors])
        self._set(sequence, values)
        sequence.position = int(tensors[0][0, 0])
        return sequence

    def _new_state(self, slots: int) -> tvm_ffi.Array:
        largest = max(math.prod(row["shape"]) for row in self.metadata["state"])
        if slots * largest > _MAX_STRIDE:
            raise SequenceError(
                f"slots is {slots}, wanted at most {_MAX_STRIDE // largest} for this model: TVM "
                "counts the elements from layer to layer in 32 bits"
            )
        shapes = [((slots,), "int32")] + [
            ((row["layers"], slots, *row["shape"]), row["dtype"]) for row in self.metadata["state"]
        ]
        try:
            tensors = [self._memory.empty(shape, dtype) for shape, dtype in shapes]
        except (RuntimeError, MemoryError) as error:
            raise SequenceError(
                f"no memory for {slots} slots of {self.metadata['memory']['slot']:,} bytes each: "
                f"{error}"
            ) from error
        return tvm_ffi.convert(tensors)

    def _tensor(self, values, dtype=np.int32) -> tvm.runtime.Tensor:
        return self._memory.hold(np.asarray(values, dtype))

    def _checked(self, tokens) -> np.ndarray:
        """Tokens as an array, all of them in the vocabulary."""
        array = np.asarray(tokens)
        if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
            raise SequenceError(
                f"tokens have shape {array.shape} and type {array.dtype}, "
                "wanted one or more integers in a row"
            )
        if array.min() < 0 or array.max() >= self.config.vocab_size:
            wrong = array[(array < 0) | (array >= self.config.vocab_size)][0]
            raise SequenceError(
                f"token {wrong} is outside the vocabulary, wanted 0 to {self.config.vocab_size - 1}"
            )
        return array

    def _call(self, function: str, *arguments):
        return self.library[function](*arguments)

    def _run(self, function: str, tokens, slots) -> tvm.runtime.Tensor:
        name = f"{function}_cublaslt" if self.cublaslt else function
        logits, _ = self._call(name, tokens, slots, self._state, self._parameters)
        return logits

    def _checked_step(self, sequences: SequenceOf[Sequence], tokens: SequenceOf[int]) -> np.ndarray:
        """The tokens [B], after a look at what a step is asked to do."""
        if len(sequences) != len(tokens) or not sequences:
            raise SequenceError(
                f"found {len(sequences)} sequences and {len(tokens)} tokens, wanted as many of "
                "one as of the other and at least one"
            )
        if len({id(sequence) for sequence in sequences}) < len(sequences):
            raise SequenceError("a sequence is listed twice, wanted each once per step")
        for sequence in sequences:
            if sequence.engine is not self:
                raise SequenceError("a sequence of another engine, wanted one of this engine's")
            sequence._check_room(1)
        return self._checked(tokens)

    def _move_on(self, sequences: SequenceOf[Sequence]) -> None:
        """Count the token that each sequence has read; at a chunk's end its memory is updated."""
        for sequence in sequences:
            sequence.position += 1
        chunk = self.config.chunk_size
        ended = [s for s in sequences if s.position % chunk == 0 and s._has_previous_chunk]
        if len(ended) == 1:
            self._commit(ended[0].slots)
        elif ended:
            self._commit(self._tensor([sequence.slot for sequence in ended]))

    def _commit(self, slots: tvm.runtime.Tensor) -> None:
        self._call("commit", slots, self._state)

    def _get(self, sequence: Sequence):
        return self._call("get_slot", sequence.slots, self._state)

    def _set(self, sequence: Sequence, values) -> None:
        self._call("set_slot", sequence.slots, values, self._state)


class Sequence:
    """One text being read and written, in a slot of its engine; a context manager.

    ``position`` counts the tokens read so far.
    """

    def __init__(self, engine: Engine, slot: int) -> None:
        self.engine, self.slot, self.position = engine, slot, 0
        self.slots = engine._tensor([slot])

    def prefill(self, tokens: SequenceOf[int] | np.ndarray) -> np.ndarray:
        """Read tokens, one or more; float32 logits [V] after the last of them."""
        for logits in self._read("prefill", tokens):
            last = logits
        return last.numpy()[0]

    def score(self, tokens: SequenceOf[int] | np.ndarray) -> np.ndarray:
        """Read tokens, one or more; float32 logits [n, V] after each of them."""
        return np.concatenate([logits.numpy() for logits in self._read("score", tokens)])

    def fork(self) -> Sequence:
        """Another sequence that has read the same tokens."""
        self._check_open()
        other = self.engine.new_sequence()
        self.engine._set(other, self.engine._get(self))
        other.position = self.position
        return other

    def save(self, path: str | Path) -> None:
        """Write the state to a file of constant size, for ``Engine.load_sequence``."""
        self._check_open()
        tensors = [tensor.numpy() for tensor in self.engine._get(self)]
        sequence_file.write(Path(path), tensors, self.engine.metadata)

    def close(self) -> None:
        """Free the slot; the sequence is of no use after that. Closing twice does nothing."""
        if self.slot >= 0:
            self.engine._free.append(self.slot)
            self.slot = -1

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_exception) -> None:
        self.close()

    @property
    def _has_previous_chunk(self) -> bool:
        return self.position >= 2 * self.engine.config.chunk_size

    def _check_open(self) -> None:
        if self.slot < 0:
            raise SequenceError("the sequence is closed: its slot may be another's; make a new one")

    def _check_room(self, count: int) -> None:
        self._check_open()
        if self.position + count > _MAX_POSITION:
            raise SequenceError(f"a sequence holds at most {_MAX_POSITION} tokens")

    def _read(self, function: str, tokens) -> Iterator[tvm.runtime.Tensor]:
        """Logits of every piece; a piece ends at the end of a chunk, where memory is updated."""
        engine, chunk = self.engine, self.engine.config.chunk_size
        array = engine._checked(tokens)
        self._check_room(len(array))
        first = chunk - self.position % chunk
        # All of them on the device beforehand: an upload waits for what runs there.
        pieces = [
            engine._tensor(piece) for piece in np.split(array, range(first, len(array), chunk))
        ]
        for piece in pieces:
            logits = engine._run(function, piece, self.slots)
            self.position += piece.shape[0]
            if self.position % chunk == 0 and self._has_previous_chunk:
                engine._commit(self.slots)
            yield logits


def read_chat_config(folder: Path) -> dict[str, Any]:
    """``mlc-chat-config.json`` of a model folder."""
    path = folder / "mlc-chat-config.json"
    if not path.is_file():
        raise LibraryError(f"{folder} has no {path.name}; make one with gecko-mlc gen-config")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values["model_config"], values["quantization"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise LibraryError(f"{path} is not a model's configuration: {error!r}") from error
    return values
