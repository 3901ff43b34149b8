"""Showing TVM's printer that a vector's address is aligned."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad
from tvm.sym.analyzer import Analyzer


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.show_alignment")
def show_alignment(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """Writes out the names in the address of a vector load, where that shows it to be aligned.

    TVM prints one access where it can prove that the address is a multiple of the vector's length,
    and a load for each element where it cannot: names hide from it what they stand for.
    """
    named: dict[tirx.Var, object] = {}
    analyzer = Analyzer()

    def note(bind: tirx.Bind) -> None:
        if _is_arithmetic(bind.value):
            named[bind.var] = bind.value

    def write_out(expression):
        written = tvm_ffi.structural_map(expression, (tirx.Var, lambda v: named.get(v, v)))
        return expression if written.same_as(expression) else write_out(written)

    def align(load: TensorLoad):
        count = load.ty.dtype.lanes
        if count == 1 or not isinstance(load.indices[-1], tirx.Ramp):
            return load
        (ramp,) = load.indices
        if ramp.stride.value != 1 or is_multiple(ramp.base, count):
            return load
        base = write_out(ramp.base)
        if not is_multiple(base, count):
            return load
        return tirx.BufferLoad(load.source, [tirx.Ramp(base, 1, count)])

    def is_multiple(expression, factor: int) -> bool:
        found = analyzer.modular_set(expression)
        return found.coeff % factor == 0 and found.base % factor == 0

    tvm_ffi.structural_walk(function.body, (tirx.Bind, note))
    return function.with_body(tvm_ffi.structural_map(function.body, (TensorLoad, align)))


def _is_arithmetic(value) -> bool:
    """Whether ``value`` means the same wherever it is written: no load, no call."""

    def find(_node):
        return tvm_ffi.structural.VisitInterrupt(True)

    if value.ty.dtype.lanes != 1 or "int" not in str(value.ty.dtype):
        return False
    return tvm_ffi.structural_walk(value, ((TensorLoad, Call), find)) is None
