"""Which tile a matrix product has on a GPU."""

from __future__ import annotations

from .cooperative import CooperativeTile, cooperative_tile
from .register_tile import RegisterTile
from .tensor_core import TensorTile
from .unit import GpuUnit

Tile = TensorTile | CooperativeTile | RegisterTile


def product_tile(
    unit: GpuUnit, dtype: str, ptx: TensorTile, aligned: bool, alone: bool = False
) -> Tile:
    """A tile for operands of ``dtype``; ``ptx`` is the one for PTX's tensor cores.

    ``aligned``: every eight elements of an operand that a tile may ask for begin at a multiple of
    eight, and none of them or all exist. Without that, and in float32, no tensor core serves.
    ``alone``: the kernel keeps nothing else in registers.
    """
    if aligned and dtype != "float32":
        if unit.ptx:
            return ptx
        if unit.tensor_cores == "cooperative":
            return cooperative_tile(
                unit, dtype, ptx.rows, ptx.columns, ptx.right_by_depth, warps=4 if alone else 8
            )
    group = (4 if dtype == "float32" else 8) if aligned else 1
    return RegisterTile(dtype, min(256, unit.threads), group, ptx.right_by_depth)
