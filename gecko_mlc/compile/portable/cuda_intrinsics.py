"""CUDA's own intrinsics, where any GPU can do the same by ordinary operations."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op

from gecko_mlc.compile.portable.warp import BARRIER

_DIVIDE = Op.get("tirx.cuda.fdividef")
_EXP2 = Op.get("tirx.ptx.ex2")
_WARP_BARRIER = Op.get("tirx.cuda.warp_sync")


def _call(call: Call):
    """fdividef is CUDA's division with an error of two units in the last place: a division."""
    if call.op.same_as(_DIVIDE):
        return call.args[0] / call.args[1]
    if call.op.same_as(_WARP_BARRIER):
        return Call(BARRIER, ["warp"], ret_ty=call.ty)
    return call


def _statement(statement: tirx.Evaluate):
    """ex2.approx writes its first operand, a register: an assignment."""
    call = statement.value
    if not isinstance(call, Call) or not call.op.same_as(_EXP2):
        return statement
    register, power = call.args[:2]
    return tirx.BufferStore(register.source, tirx.exp2(power), register.indices)


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.replace_cuda_intrinsics")
def replace_cuda_intrinsics(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """Fast division and fast power of two become plain ones, a warp's barrier TVM's own."""
    return tvm_ffi.structural_map(function, [(Call, _call), (tirx.Evaluate, _statement)])
