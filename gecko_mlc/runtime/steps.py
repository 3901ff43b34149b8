"""Steps of decode on a device that replays them as graphs, CUDA's or the Vulkan runtime's.

A graph knows what it reads and writes by its address, and its shapes are fixed. So there is a
function for each of a few batch sizes, called with the same buffers every time, and a batch in
between runs in the next larger one with idle rows. Positions and state stay on the device.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import tvm

from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.memory import Staging

IDLE = -1
# Temperature, top_p and random number with which a step samples the likeliest token.
GREEDY = (0.0, 1.0, 0.0)


class Steps:
    """The library's step functions, each with its buffers, for one state and one set of weights."""

    def __init__(self, library: Library, *arguments) -> None:
        self._library, self._arguments = library, arguments
        self._sizes = sorted(library.metadata["batches"])
        self._batches: dict[int, Batch] = {}

    @property
    def largest(self) -> int:
        """Sequences in a step at most."""
        return self._sizes[-1]

    def batch(self, rows: int) -> Batch:
        """The smallest batch with so many rows, at most ``largest``."""
        size = next(size for size in self._sizes if size >= rows)
        if size not in self._batches:
            self._batches[size] = Batch(self._library, size, *self._arguments)
        return self._batches[size]

    def logits(
        self, slots: SequenceOf[int], tokens: SequenceOf[int], kernel_by_kernel: bool
    ) -> np.ndarray:
        """Read one token in each slot: logits [n, V], of any number of slots."""
        parts = []
        for start in range(0, len(slots), self.largest):
            part = slice(start, start + self.largest)
            batch = self.batch(len(slots[part]))
            batch.load(slots[part], tokens[part])
            parts.append(batch.decode() if kernel_by_kernel else batch.step_logits())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Batch:
    """Buffers and functions for steps of up to ``size`` rows.

    ``tokens`` [size] is read by a step, which puts the tokens that it samples in their place.
    ``loads`` counts the calls of ``load``: whoever steps on without one can tell that the buffers
    are still his.
    """

    def __init__(self, library: Library, size: int, state, parameters) -> None:
        device, outputs = library.device, library.config.num_outputs
        self.loads = 0
        self._device, self._rows = device, 0
        self._decode, self._step = library[f"decode_{size}"], library[f"step_{size}"]
        self._slots = _Input((size,), "int32", device)
        self._tokens = _Input((size,), "int32", device)
        self._sampling = _Input((size, 3), "float32", device)
        self._logits = tvm.runtime.empty((size, outputs), "float32", device)
        self._sampled = Staging((size,), "int32", device)
        self._sampled_stream = device.create_raw_stream()
        self._state, self._parameters = state, parameters

    def load(self, slots: SequenceOf[int], tokens: SequenceOf[int]) -> None:
        """The slots that steps read tokens in from now on, and the tokens of the next step."""
        self.loads += 1
        self._rows = len(slots)
        idle = self._slots.shape[0] - self._rows
        self._slots.set([*slots, *[IDLE] * idle])
        self._tokens.set([*tokens, *[0] * idle])

    def decode(self) -> np.ndarray:
        """A step without its graph, so that its kernels can be listened to: logits [rows, V]."""
        logits, _ = self._decode(
            self._tokens.tensor, self._slots.tensor, self._state, self._parameters
        )
        return logits.numpy()[: self._rows]

    def step_logits(self) -> np.ndarray:
        """A step: logits [rows, V]."""
        self.launch([GREEDY] * self._rows)
        return self._logits.numpy()[: self._rows]

    def launch(self, sampling: SequenceOf[tuple[float, float, float]]) -> None:
        """Begin a step; ``sampling`` is temperature, top_p and random number of each row.

        At most one step may be under way whose tokens were not received.
        """
        idle = self._slots.shape[0] - self._rows
        self._sampling.set([*sampling, *[GREEDY] * idle])
        self._step(
            self._tokens.tensor,
            self._slots.tensor,
            self._sampling.tensor,
            self._logits,
            self._state,
            self._parameters,
        )
        self._tokens.forget()

    def send(self) -> None:
        """Begin to bring the tokens of the step just launched to the host."""
        self._sampled.receive(self._tokens.tensor)
        _SYNC_FROM_TO(self._device, 0, self._sampled_stream)

    def receive(self) -> list[int]:
        """The tokens that the last ``send`` brought; waits for them, not for a later step."""
        self._device.sync(self._sampled_stream)
        return self._sampled.host[: self._rows].tolist()


class _Input:
    """A small device tensor whose contents the host sets; only what changes is copied.

    Two copies may be under way, as when one step is launched while another runs.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, device) -> None:
        self.shape = shape
        self.tensor = tvm.runtime.empty(shape, dtype, device)
        self._staging = Staging(shape, dtype, device), Staging(shape, dtype, device)
        self._turn = 0
        self._contents: list | None = None

    def set(self, contents: list) -> None:
        if contents == self._contents:
            return
        self._turn = 1 - self._turn
        staging = self._staging[self._turn]
        staging.host[...] = contents
        staging.send(self.tensor)
        self._contents = contents

    def forget(self) -> None:
        """The device has written to the tensor."""
        self._contents = None


_SYNC_FROM_TO = tvm.get_global_func("runtime.Device_StreamSyncFromTo")
