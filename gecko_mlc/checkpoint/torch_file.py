"""A ``.pt`` file holding a state dict, mapped and read by rows; the only user of torch here."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gecko_mlc.checkpoint.source import CheckpointError, TensorSource

# A mapped page counts as this process's memory once it was read, so the file is mapped anew after
# this many bytes: converting then never holds more than this of it.
REMAP_BYTES = 32 << 20


class TorchFile(TensorSource):
    """The tensors of one file written by ``torch.save``, loaded with ``weights_only``.

    CheckpointError when torch is not installed or the file is not a state dict.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[str, Any] | None = self._load()
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._state.items()}
        self._touched = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if self._state is None:
            self._state = self._load()
        array = _as_numpy(self._state[name].reshape(self._shapes[name] or (1,))[start:stop])
        self._touched += array.nbytes
        if self._touched >= REMAP_BYTES:
            self._state, self._touched = None, 0
        return array

    def _load(self) -> dict[str, Any]:
        try:
            import torch
        except ImportError as error:
            raise CheckpointError(
                f"{self.path} is a PyTorch file and torch is not installed: install torch "
                "(pip install 'gecko-mlc[reference]') or save the weights as .safetensors"
            ) from error
        try:
            loaded = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{self.path} holds more than tensors (or is damaged), and is not loaded for "
                f"safety; save the model's state_dict() alone. torch says: {_first_line(error)}"
            ) from error
        except (RuntimeError, EOFError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read; wanted a file of torch.save in its zip format. "
                f"torch says: {_first_line(error)}"
            ) from error
        if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
            loaded = loaded["model"]
        if not isinstance(loaded, dict):
            raise CheckpointError(
                f"{self.path} holds a {type(loaded).__name__}, wanted a state dict "
                "(a dict of tensors, or one under the key 'model')"
            )
        faults = [
            f"{name!r} is a {type(value).__name__}, wanted a tensor"
            for name, value in loaded.items()
            if not isinstance(value, torch.Tensor)
        ]
        if faults:
            raise CheckpointError.listing(f"{self.path} is not a state dict", faults)
        return loaded


def _as_numpy(tensor: Any) -> np.ndarray:
    """A copy, so that nothing refers to the mapped file afterwards."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().copy().view(ml_dtypes.bfloat16)
    try:
        return tensor.numpy().copy()
    except TypeError as error:
        raise CheckpointError(f"a tensor is stored as {tensor.dtype}: {error}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
