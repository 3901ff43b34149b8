"""The bytes of a module of kind ``vulkan``: kernels and what a launch of each has to know.

Little-endian: ``GKVK``, the version (uint32), the length of the JSON (uint64), the JSON in UTF-8,
zeros up to a multiple of 4, then the SPIR-V modules one after another. The JSON has ``needs``, what
a device must offer for all kernels, and ``kernels`` by name; ``offset`` and ``size`` there count
words from the first module on.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

from gecko_mlc.vulkan.kernel import Kernel

_MAGIC, _VERSION = b"GKVK", 1
_HEADER = "<4sIQ"
_FEATURES = ("float16", "storage16", "int64", "int16", "cooperative_matrix", "bfloat16")


def pack(kernels: Iterable[Kernel]) -> bytes:
    """The kernels as one module."""
    kernels = sorted(kernels, key=lambda kernel: kernel.name)
    table, offset = {}, 0
    for kernel in kernels:
        size = len(kernel.spirv) // 4
        table[kernel.name] = {
            "offset": offset,
            "size": size,
            "threads": list(kernel.threads),
            "arguments": list(kernel.arguments),
            "launch": list(kernel.launch),
            "block": "memory" if kernel.in_memory else "push",
            "subgroup": kernel.subgroup,
            "shared": kernel.shared,
            "cooperative_matrix": kernel.cooperative_matrix,
        }
        offset += size
    text = json.dumps({"needs": needs(kernels), "kernels": table}).encode()
    header = struct.pack(_HEADER, _MAGIC, _VERSION, len(text)) + text
    return header + b"\0" * (-len(header) % 4) + b"".join(kernel.spirv for kernel in kernels)


def needs(kernels: list[Kernel]) -> dict[str, Any]:
    """What a device must offer to run all of them."""
    result: dict[str, Any] = {
        feature: any(getattr(kernel, feature) for kernel in kernels) for feature in _FEATURES
    }
    result["subgroup"] = max((kernel.subgroup for kernel in kernels), default=0)
    result["shared"] = max((kernel.shared for kernel in kernels), default=0)
    result["threads"] = max((_product(kernel.threads) for kernel in kernels), default=1)
    result["push_constants"] = max((_pushed(kernel) for kernel in kernels), default=0)
    return result


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The JSON of a module, and the SPIR-V of each kernel. ValueError for other bytes."""
    size = struct.calcsize(_HEADER)
    if len(data) < size:
        raise ValueError(f"{len(data)} bytes are no Vulkan module, which has {size} at least")
    magic, version, length = struct.unpack_from(_HEADER, data)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(
            f"found magic {magic!r} and version {version}, wanted {_MAGIC!r} and {_VERSION}"
        )
    description = json.loads(data[size : size + length])
    first = -(-(size + length) // 4) * 4
    words = {
        name: data[first + 4 * row["offset"] : first + 4 * (row["offset"] + row["size"])]
        for name, row in description["kernels"].items()
    }
    return description, words


def _product(threads: tuple[int, int, int]) -> int:
    x, y, z = threads
    return x * y * z


def _pushed(kernel: Kernel) -> int:
    """Bytes of push constants."""
    return 8 if kernel.in_memory else kernel.argument_bytes
