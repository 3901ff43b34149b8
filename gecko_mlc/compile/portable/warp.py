"""A warp as kernels know it, and TVM's operations between its lanes."""

from __future__ import annotations

from tvm.ir import Call, Op

SHUFFLE = Op.get("tirx.tvm_warp_shuffle")
SHUFFLE_UP = Op.get("tirx.tvm_warp_shuffle_up")
SHUFFLE_DOWN = Op.get("tirx.tvm_warp_shuffle_down")
SHUFFLE_XOR = Op.get("tirx.tvm_warp_shuffle_xor")
BARRIER = Op.get("tirx.tvm_storage_sync")

_SHUFFLES = {op.name for op in (SHUFFLE, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR)}


def is_shuffle(value) -> bool:
    """Whether ``value`` is a shuffle. Its operands are a mask of lanes (all), the lane's value, the
    other lane (its number, its distance, or the bits by which it differs), and twice a width.
    """
    return isinstance(value, Call) and value.op.name in _SHUFFLES


def is_barrier(value, scope: str) -> bool:
    """Whether ``value`` is a barrier of that ``scope``: "warp", or "shared" for the CTA."""
    return isinstance(value, Call) and value.op.same_as(BARRIER) and value.args[0].value == scope
