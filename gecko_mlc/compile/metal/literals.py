"""Constants that TVM's printer would round."""

from __future__ import annotations

import math
import struct

import tvm_ffi
from tvm import tirx


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.exact_literals")
def exact_literals(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """A float32 constant that the printed seven digits do not say is given by its bits.

    So are infinities: the runtime has Metal's compiler assume that arithmetic makes none, and the
    text of a negative one is arithmetic.
    """

    def exact(number: tirx.FloatImm):
        if str(number.ty.dtype) != "float32":
            return number
        (value,) = struct.unpack("<f", struct.pack("<f", number.value))
        if math.isfinite(value) and _float32(f"{number.value:.6e}") == value:
            return number
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        return tirx.reinterpret("float32", tirx.IntImm("uint32", bits))

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.FloatImm, exact)))


def _float32(digits: str) -> float:
    return struct.unpack("<f", struct.pack("<f", float(digits)))[0]
