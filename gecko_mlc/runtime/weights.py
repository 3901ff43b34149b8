"""Loading converted weights into the tensors a library's functions take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tvm
import tvm_ffi

from gecko_mlc.runtime.library import Library
from gecko_mlc.runtime.memory import TensorMemory

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


class WeightsError(ValueError):
    """Weights that are damaged or of another model; the message lists every fault."""


def load_parameters(folder: Path, library: Library, memory: TensorMemory) -> tvm_ffi.Array:
    """The library's parameters from ``tensor-cache.json`` and its shards, packed for its kernels.

    Shards are mapped, and each matrix is packed as it is read: beside the result there is never
    more than one tensor, stored and packed, in memory. Raises WeightsError before anything runs.
    """
    records = _records(_index(folder))
    _check(records, library, folder)
    parameters = []
    for row in library.metadata["params"]:
        array = _read(records[row["source"]])
        if row["pack"]:
            packed = library[row["pack"]](tvm.runtime.tensor(array, library.device))
            parameters.append(memory.keep(packed))
        else:
            parameters.append(memory.upload(array))
    return tvm_ffi.convert(parameters)


def stored_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The converted weights as stored, memory-mapped, by name; bfloat16 as ``ml_dtypes`` has it."""
    return {name: _read(record) for name, record in _records(_index(folder)).items()}


def _index(folder: Path) -> Path:
    index = folder / "tensor-cache.json"
    if not index.is_file():
        raise WeightsError(
            f"{folder} has no tensor-cache.json; make one with gecko-mlc convert-weight"
        )
    return index


def _records(index: Path) -> dict[str, dict[str, Any]]:
    """Every tensor's record, with the path of its shard."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["records"]
        return {
            record["name"]: {**record, "path": index.parent / shard["dataPath"]}
            for shard in shards
            for record in shard["records"]
        }
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{index} is not a tensor cache: {error!r}") from error


def _check(records: dict[str, dict[str, Any]], library: Library, folder: Path) -> None:
    faults = []
    for row in library.metadata["params"]:
        record = records.get(row["source"])
        if record is None:
            faults.append(f"{row['source']} is missing")
        elif (record["shape"], record["dtype"]) != (row["shape"], row["dtype"]):
            faults.append(
                f"{row['source']} is {record['dtype']} {record['shape']}, "
                f"wanted {row['dtype']} {row['shape']}"
            )
        elif not record["path"].is_file():
            faults.append(f"{record['path']} is missing, with {row['source']} in it")
        elif record["path"].stat().st_size < record["byteOffset"] + record["nbytes"]:
            faults.append(f"{record['path']} is too short, {row['source']} is not whole in it")
    if faults:
        raise WeightsError(
            f"the weights in {folder} do not fit {library.path}:\n  " + "\n  ".join(faults)
        )


def _read(record: dict[str, Any]) -> np.ndarray:
    dtype = _DTYPES.get(record["dtype"]) or np.dtype(record["dtype"])
    return np.memmap(
        record["path"], dtype, mode="r", offset=record["byteOffset"], shape=tuple(record["shape"])
    )
