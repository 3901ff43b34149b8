"""How large the relative error of each operation and state tensor may be, and why."""

from __future__ import annotations

# Relative error: norm of the difference over norm of the reference's values.
#
# q0f32 is float32 arithmetic against float64. Sums in another order give 1e-7 to 1e-6 an operation,
# which layers carry to 1e-5 at most; a wrong operation is off by 1e-2 and more.
#
# q0f16 and q0bf16 are compared with a reference that has the same rounded matrices, so what is left
# is what a library rounds while it runs: keys, values and memory keys as they enter the rings. One
# rounding changes a value by at most 2^-11 or 2^-8 of it, and a row of them by 2.1e-4 or 1.7e-3 of
# its norm. What follows averages over many of them and is off by less (measured: a twentieth).
# Twice the largest rounding leaves room for depth.
TOLERANCES = {"q0f32": 1e-4, "q0f16": 2 * 2.0**-11, "q0bf16": 2 * 2.0**-8}

# A library that computes in 16 bits may lose so many times what the reference loses in that type on
# the same tokens; less in its logits, where what it lost on the way has averaged out.
ROUNDED, ROUNDED_LOGITS = 2.0, 1.5

# Against the checkpoint's own matrices every product is off by its matrix's rounding (measured
# after two layers: one of the largest roundings), and the residual stream adds them up over layers
# as a random walk does: eight of the largest roundings are the sum of some sixty products.
CHECKPOINT_TOLERANCES = {"q0f32": 1e-4, "q0f16": 8 * 2.0**-11, "q0bf16": 8 * 2.0**-8}

# What the first layer computes before it reads a ring is float32 arithmetic whatever the
# quantization.
_BEFORE_RINGS = frozenset(
    ["embed"]
    + [f"layers.0.{op}" for op in ("timenorm", "cema", "rmsnorm", "wv", "wzrh")]
    + [f"layers.0.{op}" for op in ("query", "memory_query")]
    + [f"layers.0.{tensor}" for tensor in ("state.mean", "state.var", "state.cema")]
)


def tolerance(name: str, quantization: str, checkpoint: bool) -> float:
    """For an operation or state tensor; ``checkpoint``: the reference has unrounded matrices."""
    if name == "position":
        return 0.0
    if checkpoint:
        return CHECKPOINT_TOLERANCES[quantization]
    return TOLERANCES["q0f32" if name in _BEFORE_RINGS else quantization]


def rounded_tolerance(name: str, quantization: str, checkpoint: bool, lost: float) -> float:
    """The same for a library that computes in 16 bits; ``lost`` is the relative error of the
    reference in that type."""
    if name == "output.logits":
        return ROUNDED_LOGITS * lost
    return max(tolerance(name, quantization, checkpoint), ROUNDED * lost)
