"""Buffers as passes need them: declared anew with another type, and their size."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx


def redeclared(buffer: tirx.Var, **changes: Any) -> tirx.Var:
    """A new buffer like ``buffer`` but for its ``shape``, ``dtype`` or ``scope``."""
    old = buffer.ty
    described = {
        "shape": old.shape,
        "dtype": old.dtype.dtype,
        "scope": old.storage_scope,
        "strides": old.strides,
        "elem_offset": old.elem_offset,
        "data_alignment": old.data_alignment,
        "offset_factor": old.offset_factor,
        "layout": old.layout,
    }
    return tirx.decl_buffer(**(described | {"name": buffer.name} | changes))


def size_in_bytes(buffer: tirx.Var) -> int:
    """The memory that a buffer of constant shape takes."""
    return math.prod(int(extent) for extent in buffer.ty.shape) * buffer.ty.dtype.dtype.itemsize
