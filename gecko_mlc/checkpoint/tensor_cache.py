"""Writing TVM's tensor cache: ``tensor-cache.json`` beside ``params_shard_*.bin``.

The layout is that of ``tvm.contrib.tvmjs.dump_tensor_cache`` with every record ``raw``; it is read
by ``vm.builtin.tensor_cache.load``. That function takes whole arrays and collects a shard in
memory; this writer takes a tensor in blocks and keeps none of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

CACHE_NAME = "tensor-cache.json"
SHARD_PREFIX = "params_shard_"
# Small tensors share a file up to this size; a larger one has a file of its own.
SHARD_BYTES = 32 << 20


class TensorCacheWriter:
    """Writes one tensor after another: ``begin``, ``write`` until complete; at last ``finish``."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._digest = hashlib.md5(usedforsecurity=False)

    def begin(self, name: str, shape: tuple[int, ...], dtype: str, itemsize: int) -> None:
        nbytes = math.prod(shape) * itemsize
        if self._file is None or self._shards[-1]["nbytes"] + nbytes > self._shard_bytes:
            self._next_shard()
        shard = self._shards[-1]
        shard["records"].append(
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "format": "raw",
                "nbytes": nbytes,
                "byteOffset": shard["nbytes"],
            }
        )

    def write(self, block: np.ndarray) -> None:
        """The next entries of the tensor last begun, in its dtype."""
        assert self._file is not None, "begin comes first"
        data = block.tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._shards[-1]["nbytes"] += len(data)

    def finish(self, metadata: dict[str, Any]) -> None:
        self.close()
        cache = {"metadata": metadata, "records": self._shards}
        text = json.dumps(cache, indent=1)
        (self._folder / CACHE_NAME).write_text(text, encoding="utf-8")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._shards[-1]["md5sum"] = self._digest.hexdigest()

    def _next_shard(self) -> None:
        self.close()
        name = f"{SHARD_PREFIX}{len(self._shards)}.bin"
        self._shards.append({"dataPath": name, "format": "raw-shard", "nbytes": 0, "records": []})
        self._file = (self._folder / name).open("wb")
        self._digest = hashlib.md5(usedforsecurity=False)
