"""What every kind of checkpoint looks like to the conversion: named tensors, read by rows."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted: the message lists every fault found."""

    @classmethod
    def listing(cls, what: str, faults: list[str]) -> CheckpointError:
        return cls(f"{what}:\n  " + "\n  ".join(faults))


class TensorSource(Mapping[str, np.ndarray], abc.ABC):
    """Tensors by name. Shapes are known without reading; data is read when asked for, and not kept.

    bfloat16 arrays have the dtype ``ml_dtypes.bfloat16``.
    """

    @abc.abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; KeyError when there is none of that name."""

    @abc.abstractmethod
    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Entries ``start:stop`` along the first axis, in the stored dtype (a scalar has one)."""

    def __contains__(self, name: object) -> bool:
        try:  # Mapping's own way would read the tensor
            return isinstance(name, str) and self.shape(name) is not None
        except KeyError:
            return False

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1).reshape(shape)


class MemoryTensors(TensorSource):
    """A plain mapping of arrays as a source."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(np.shape(self._arrays[name]))

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return np.atleast_1d(self._arrays[name])[start:stop]


class JoinedTensors(TensorSource):
    """Several sources with different names as one: the shards of a checkpoint."""

    def __init__(self, owners: Mapping[str, TensorSource]) -> None:
        self._owners = owners

    def __iter__(self) -> Iterator[str]:
        return iter(self._owners)

    def __len__(self) -> int:
        return len(self._owners)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owners[name].shape(name)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._owners[name].rows(name, start, stop)
