"""bfloat16 as the 16-bit integers that hold its bits.

MSL has the type from version 3.1 on; TVM's runtime has Metal's compiler take 2.3. Kernels load,
store, move and convert bfloat16; their arithmetic is float32.
"""

from __future__ import annotations

import struct
from typing import NoReturn

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, Op, PointerType, PrimType, TensorLoad

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.portable.buffers import redeclared

_REINTERPRET = Op.get("tirx.reinterpret")
_BITS = "uint16"
_NAN, _INFINITY = 0x7FC0, 0x7F800000


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.bfloat16_as_bits")
def bfloat16_as_bits(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """Memory of bfloat16 holds uint16; conversions to and from float32 are operations on bits.

    Any other operation on bfloat16 is a CompileError.
    """
    as_bits: dict[tirx.Var, tirx.Var] = {}

    def variable(old: tirx.Var) -> tirx.Var:
        if old not in as_bits:
            as_bits[old] = _variable(old)
        return as_bits[old]

    function = tvm_ffi.structural_map(
        function,
        [(tirx.Cast, _cast), (tirx.FloatImm, _constant), (tirx.Var, variable)],
        order="pre",
    )
    function = tvm_ffi.structural_map(
        function,
        [
            (TensorLoad, lambda load: tirx.BufferLoad(load.source, load.indices)),
            (tirx.Broadcast, lambda node: tirx.Broadcast(node.value, node.lanes)),
            (tirx.Shuffle, lambda node: tirx.Shuffle(node.vectors, node.indices)),
            (tirx.Select, _select),
            (Call, _call),
        ],
    )
    _check(function)
    return function


def _is_bfloat(ty) -> bool:
    return isinstance(ty, PrimType) and str(ty.dtype).startswith("bfloat16")


def _bits(ty: PrimType) -> str:
    """The type of the bits of as many elements."""
    return _typed(_BITS, ty.dtype.lanes)


def _typed(kind: str, lanes: int) -> str:
    return kind if lanes == 1 else f"{kind}x{lanes}"


def _variable(old: tirx.Var) -> tirx.Var:
    ty = old.ty
    if _is_bfloat(ty):
        return tirx.Var(old.name, PrimType(_bits(ty)))
    if isinstance(ty, PointerType) and _is_bfloat(ty.element_type):
        return tirx.Var(old.name, PointerType(PrimType(_bits(ty.element_type)), ty.storage_scope))
    if tirx.is_buffer_var(old) and _is_bfloat(ty.dtype):
        return redeclared(old, dtype=_bits(ty.dtype))
    return old


def _constant(number: tirx.FloatImm):
    if not _is_bfloat(number.ty):
        return number
    (word,) = struct.unpack("<I", struct.pack("<f", number.value))
    return tirx.IntImm(_BITS, (word + 0x7FFF + (word >> 16 & 1)) >> 16 & 0xFFFF)


def _cast(cast: tirx.Cast):
    lanes = cast.ty.dtype.lanes
    word, single = _typed("uint32", lanes), _typed("float32", lanes)
    if _is_bfloat(cast.value.ty):
        bits = tirx.reinterpret(_typed(_BITS, lanes), cast.value)
        high = tirx.Cast(word, bits) << _number(16, lanes)
        whole = tirx.reinterpret(single, high)
        return whole if str(cast.ty.dtype) == single else tirx.Cast(cast.ty.dtype, whole)
    if not _is_bfloat(cast.ty):
        return cast
    value = cast.value if str(cast.value.ty.dtype) == single else tirx.Cast(single, cast.value)
    bits = tirx.reinterpret(word, value)
    even = (bits >> _number(16, lanes)) & _number(1, lanes)
    rounded = (bits + _number(0x7FFF, lanes) + even) >> _number(16, lanes)
    if lanes == 1:
        # Rounding would carry a NaN into the sign.
        magnitude = bits & _number(0x7FFFFFFF, 1)
        rounded = tirx.Select(magnitude > _number(_INFINITY, 1), _number(_NAN, 1), rounded)
    return tirx.Cast(_typed(_BITS, lanes), rounded)


def _number(value: int, lanes: int):
    number = tirx.IntImm("uint32", value)
    return number if lanes == 1 else tirx.Broadcast(number, lanes)


def _select(node: tirx.Select) -> tirx.Select:
    return tirx.Select(node.condition, node.true_value, node.false_value)


def _call(call: Call):
    if call.op.same_as(_REINTERPRET) and str(call.ty) == str(call.args[0].ty):
        return call.args[0]
    if not _is_bfloat(call.ty):
        return call
    return Call(call.op, call.args, ret_ty=PrimType(_bits(call.ty)))


def _check(function: tirx.PrimFunc) -> None:
    def find(expression: Expr) -> None:
        if _is_bfloat(expression.ty):
            _fail(function, expression)

    tvm_ffi.structural_walk(function.body, (Expr, find))


def _fail(function: tirx.PrimFunc, expression: Expr) -> NoReturn:
    raise CompileError(
        f"kernel {function.attrs['global_symbol']}: found {expression} in bfloat16, wanted loads, "
        "stores and conversions alone: MSL 2.3 has no bfloat16"
    )
