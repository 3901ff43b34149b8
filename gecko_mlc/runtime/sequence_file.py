"""A sequence's state in a file: NumPy's .npz with the tensors and what model they belong to."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class SequenceFileError(ValueError):
    """A file that holds no sequence, or one of another model."""


def write(path: Path, tensors: list[np.ndarray], metadata: dict[str, Any]) -> None:
    """Write ``tensors`` ([layers, size] each, the position first), whole or not at all."""
    arrays = {
        # NumPy files know no bfloat16: its bits go as integers.
        f"tensor_{i}": tensor.view(np.uint16) if tensor.dtype == _BFLOAT16 else tensor
        for i, tensor in enumerate(tensors)
    }
    identity = np.frombuffer(_identity(metadata).encode(), np.uint8)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, model=identity, **arrays)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def read(path: Path, metadata: dict[str, Any]) -> list[np.ndarray]:
    """The tensors of a file written for the same model, dtype and format."""
    if not path.is_file():
        raise SequenceFileError(f"{path} is not a file")
    try:
        # np.load would return something else for a file of one array, or of none.
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("not an .npz file")
        with np.load(path, allow_pickle=False) as archive:
            found = archive["model"].tobytes().decode()
            count = len(archive.files) - 1
            tensors = [archive[f"tensor_{i}"] for i in range(count)]
    except (ValueError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
        raise SequenceFileError(f"{path} is no saved sequence: {error}") from error
    if found != _identity(metadata):
        raise SequenceFileError(
            f"{path} was saved with another model or library:\n  found  {found}\n"
            f"  wanted {_identity(metadata)}"
        )
    shapes = [(1, 1)] + [(row["layers"], math.prod(row["shape"])) for row in metadata["state"]]
    if [tensor.shape for tensor in tensors] != shapes or tensors[0][0, 0] < 0:
        raise SequenceFileError(
            f"{path} is damaged: found tensors {[tensor.shape for tensor in tensors]} at position "
            f"{tensors[0].ravel()[:1]}, wanted {shapes}"
        )
    dtypes = ["int32"] + [row["dtype"] for row in metadata["state"]]
    return [
        tensor.view(_BFLOAT16) if dtype == "bfloat16" else tensor
        for tensor, dtype in zip(tensors, dtypes, strict=True)
    ]


def _identity(metadata: dict[str, Any]) -> str:
    return json.dumps(
        {key: metadata[key] for key in ("format_version", "quantization", "model_config")},
        sort_keys=True,
    )
