"""Vectors no wider than a target's own."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx

_METAL_LANES = 4


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.split_vectors")
def split_vectors(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """Vectorized loops of more than Metal's four elements, as several of four each."""
    if "target" not in function.attrs or function.attrs["target"].kind.name != "metal":
        return function

    def split(loop: tirx.For) -> tirx.Stmt:
        if loop.kind != tirx.ForKind.VECTORIZED or int(loop.extent) <= _METAL_LANES:
            return loop
        width, rest = _METAL_LANES, int(loop.extent) % _METAL_LANES
        if rest:
            return loop
        parts = []
        for first in range(0, int(loop.extent), width):
            lane = tirx.Var(loop.loop_var.name, loop.loop_var.ty)
            moved = {loop.loop_var: loop.min + first + lane}
            body = tvm_ffi.structural_map(
                loop.body, (tirx.Var, lambda variable, moved=moved: moved.get(variable, variable))
            )
            parts.append(tirx.For(lane, 0, width, tirx.ForKind.VECTORIZED, body))
        return tirx.stmt_seq(*parts)

    return tvm_ffi.structural_map(function, (tirx.For, split))
