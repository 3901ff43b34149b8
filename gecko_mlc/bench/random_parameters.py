"""Random numbers made on the device itself: billions of them in seconds, none on disk."""

from __future__ import annotations

import math
from pathlib import Path

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi

from gecko_mlc.checkpoint import mapping, random_checkpoint
from gecko_mlc.checkpoint.mapping import Parameter
from gecko_mlc.checkpoint.random_weights import RandomCheckpoint, matrix_scale
from gecko_mlc.runtime.engine import Engine
from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.memory import TensorMemory

# A prime, so that no two rows of a matrix are alike where the block repeats.
_BLOCK = 4_194_301
_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


def random_parameters(folder: Path, library: Library, memory: TensorMemory) -> tvm_ffi.Array:
    """Parameters for a library that packs none, spread as ``random_checkpoint`` spreads them.

    Matrices repeat one block of normal numbers, each scaled as its inputs ask; vectors are those of
    ``random_checkpoint``. The same in every run. ``folder`` is not read.
    """
    config = library.config
    source = random_checkpoint(config)
    table = mapping.parameters(config, library.metadata["quantization"])
    known = {parameter.name: parameter for parameter in table}
    noise = Noise(memory)
    parameters: dict[str, tvm.runtime.Tensor] = {}
    for row in library.metadata["params"]:
        assert row["pack"] is None, f"{row['name']} is packed by the library"
        parameter = known[row["source"]]
        if len(parameter.shape) == 2 and parameter.name.endswith(".weight"):
            tensor = memory.empty(parameter.shape, parameter.dtype)
            noise.fill(tensor, matrix_scale(parameter.name, parameter.shape[1]))
        else:
            tensor = memory.upload(_vector(parameter, source))
        parameters[row["name"]] = tensor
    return tvm_ffi.convert(list(parameters.values()))


def fill_windows(engine: Engine) -> None:
    """Every slot's rings and memory with normal numbers, as if a text had been read."""
    noise = Noise(TensorMemory(engine.library.device))
    for name in ("keys", "values", "memory_keys", "memory", "log_norm"):
        noise.fill(engine.state[name], 1.0)


class Noise:
    """Fills tensors with normal numbers, one after the other; the same in every run."""

    def __init__(self, memory: TensorMemory) -> None:
        self._memory = memory
        self._numbers = np.random.default_rng(0).standard_normal(_BLOCK, np.float32)
        self._blocks: dict[tuple[str, float], tvm.runtime.Tensor] = {}
        self._next = 0

    def fill(self, tensor: tvm.runtime.Tensor, scale: float) -> None:
        """Standard deviation ``scale``."""
        dtype = str(tensor.dtype)
        if (dtype, scale) not in self._blocks:
            block = (self._numbers * np.float32(scale)).astype(_DTYPES.get(dtype, dtype))
            self._blocks[dtype, scale] = self._memory.upload(block)
        count, itemsize = math.prod(tensor.shape), tensor.dtype.bits // 8
        done = 0
        while done < count:
            length = min(_BLOCK - self._next, count - done)
            part = tensor._create_view((length,), dtype, done * itemsize)
            block = self._blocks[dtype, scale]
            block._create_view((length,), dtype, self._next * itemsize).copyto(part)
            done += length
            self._next = (self._next + length) % _BLOCK


def _vector(parameter: Parameter, source: RandomCheckpoint) -> np.ndarray:
    arrays = [np.asarray(source[entry.name], np.float64) for entry in parameter.sources]
    value = np.concatenate(arrays) if parameter.fold is None else parameter.fold(*arrays)
    return np.ascontiguousarray(value.astype(_DTYPES.get(parameter.dtype, parameter.dtype)))
