"""Functions of C's library that neither SPIR-V nor MSL has."""

from __future__ import annotations

import math

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op

_EXTERN = Op.get("tirx.call_pure_extern")
# Terms of the series that give float32's precision up to this magnitude.
_TERMS, _SMALL = 9, 0.5


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.replace_functions")
def replace_functions(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """expm1 by its series near zero, else by exp. Other functions stay."""

    def replace(call: Call):
        if call.op.same_as(_EXTERN) and call.args[0].value == "expm1f":
            return _expm1(call.args[1])
        return call

    return function.with_body(tvm_ffi.structural_map(function.body, (Call, replace)))


def _expm1(x):
    """exp(x) - 1 in float32, to a few units in the last place."""

    def number(value: float) -> tirx.FloatImm:
        return tirx.FloatImm("float32", value)

    series = number(1.0 / math.factorial(_TERMS))
    for n in range(_TERMS - 1, 0, -1):
        series = series * x + number(1.0 / math.factorial(n))
    return tirx.Select(tirx.abs(x) < number(_SMALL), series * x, tirx.exp(x) - number(1.0))
