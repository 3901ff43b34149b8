"""A ``.safetensors`` file, read by rows with plain file reads.

The format (https://huggingface.co/docs/safetensors): a little-endian length in 8 bytes, that many
bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then the data. Read here rather than with
the ``safetensors`` package because that maps the file, so that all of a checkpoint would count as
memory of the process that converts it.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from gecko_mlc.checkpoint.source import CheckpointError, TensorSource

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class _Entry:
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int  # from the start of the file


class SafetensorsFile(TensorSource):
    """The tensors of one file. CheckpointError when it is not a whole safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = _read_header(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        entry = self._entries[name]
        shape = entry.shape or (1,)
        row = math.prod(shape[1:])
        data = np.fromfile(
            self.path,
            dtype=entry.dtype,
            count=(stop - start) * row,
            offset=entry.offset + start * row * entry.dtype.itemsize,
        )
        return data.reshape(stop - start, *shape[1:])


def _read_header(path: Path) -> dict[str, _Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start = 8 + length
        if size < 8 or start > size:
            raise CheckpointError(f"{path} is not a whole safetensors file: its header is cut off")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = {
                name: (info["dtype"], tuple(info["shape"]), *info["data_offsets"])
                for name, info in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error!r}") from error

    entries, faults = {}, []
    for name, (dtype, shape, begin, end) in found.items():
        if dtype not in DTYPES:
            faults.append(f"{name} is stored as {dtype}, known are {', '.join(DTYPES)}")
        elif end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            faults.append(f"{name} has {end - begin} bytes, not those of {dtype} {list(shape)}")
        elif start + end > size:
            faults.append(f"{name} ends at byte {start + end}, the file at {size}: it is cut off")
        else:
            entries[name] = _Entry(DTYPES[dtype], shape, start + begin)
    if faults:
        raise CheckpointError.listing(f"{path} cannot be read", faults)
    return entries
