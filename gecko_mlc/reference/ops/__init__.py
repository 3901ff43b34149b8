"""The model's operations, one short function each (arXiv 2601.06463; DESIGN section 2).

Every operation takes any floating dtype. Statistics and recurrent state are kept in the state's
dtype, float32, or float64 when the model computes in float64: see `wide`.
"""

from __future__ import annotations

from gecko_mlc.reference.ops.attention import sliding_chunk_attention
from gecko_mlc.reference.ops.cema import cema_coefficients, complex_ema
from gecko_mlc.reference.ops.memory import memory_commit, memory_read
from gecko_mlc.reference.ops.norm import group_layer_norm, group_rms_norm
from gecko_mlc.reference.ops.precision import state_dtype, wide
from gecko_mlc.reference.ops.rotary import rotary, rotation
from gecko_mlc.reference.ops.timenorm import timestep_decay_norm

__all__ = [
    "cema_coefficients",
    "complex_ema",
    "group_layer_norm",
    "group_rms_norm",
    "memory_commit",
    "memory_read",
    "rotary",
    "rotation",
    "sliding_chunk_attention",
    "state_dtype",
    "timestep_decay_norm",
    "wide",
]
