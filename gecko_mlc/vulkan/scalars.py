"""TensorIR's scalar types and what can be done with them in SPIR-V.

A bfloat16 is held as the float32 of the same value and has 16 bits in memory only: devices with
arithmetic for it are few, and none is needed.
"""

from __future__ import annotations

import math
import struct

from gecko_mlc.vulkan.code import Code
from gecko_mlc.vulkan.enumerants import Capability, Glsl, Op
from gecko_mlc.vulkan.unsupported import Unsupported

BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
}
_FLOATS = ("float32", "float16", "bfloat16")

# By what a type is: a float, an integer with sign, one without, a bool.
_BINARY = {
    "Add": (Op.FAdd, Op.IAdd, Op.IAdd, None),
    "Sub": (Op.FSub, Op.ISub, Op.ISub, None),
    "Mul": (Op.FMul, Op.IMul, Op.IMul, None),
    "Div": (Op.FDiv, Op.SDiv, Op.UDiv, None),
    "Mod": (Op.FRem, Op.SRem, Op.UMod, None),
    "BitwiseAnd": (None, Op.BitwiseAnd, Op.BitwiseAnd, Op.LogicalAnd),
    "BitwiseOr": (None, Op.BitwiseOr, Op.BitwiseOr, Op.LogicalOr),
    "BitwiseXor": (None, Op.BitwiseXor, Op.BitwiseXor, Op.LogicalNotEqual),
    "LShift": (None, Op.ShiftLeftLogical, Op.ShiftLeftLogical, None),
    "RShift": (None, Op.ShiftRightArithmetic, Op.ShiftRightLogical, None),
    "And": (None, None, None, Op.LogicalAnd),
    "Or": (None, None, None, Op.LogicalOr),
}
_COMPARISON = {
    "EQ": (Op.FOrdEqual, Op.IEqual, Op.IEqual, Op.LogicalEqual),
    "NE": (Op.FUnordNotEqual, Op.INotEqual, Op.INotEqual, Op.LogicalNotEqual),
    "LT": (Op.FOrdLessThan, Op.SLessThan, Op.ULessThan, None),
    "LE": (Op.FOrdLessThanEqual, Op.SLessThanEqual, Op.ULessThanEqual, None),
}
# As fminf and fmaxf: of a NaN and a number, the number.
_EXTREME = {
    "Min": (Glsl.NMin, Glsl.SMin, Glsl.UMin),
    "Max": (Glsl.NMax, Glsl.SMax, Glsl.UMax),
}
_SWAPPED = {"GT": "LT", "GE": "LE"}


def _family(dtype: str) -> int:
    if dtype in _FLOATS:
        return 0
    return 3 if dtype == "bool" else int(dtype.startswith("uint")) + 1


class Scalars:
    """Arithmetic on ids of values; a dtype says what an id is."""

    def __init__(self, code: Code):
        self.code, self.module = code, code.module

    def kind(self, dtype: str) -> int:
        """The SPIR-V type of values of ``dtype``."""
        if dtype in ("float32", "bfloat16"):
            return self.module.floating(32)
        if dtype in ("int32", "uint32"):
            return self.module.integer(32)
        if dtype == "bool":
            return self.module.boolean()
        if dtype == "float16":
            self.module.capability(Capability.Float16)
            return self.module.floating(16)
        if dtype in ("int64", "uint64"):
            self.module.capability(Capability.Int64)
            return self.module.integer(64)
        raise Unsupported(f"a value of type {dtype}")

    def constant(self, dtype: str, value: int | float | bool) -> int:
        if dtype == "bfloat16":
            value = _nearest_bfloat16(float(value))
        return self.module.constant(self.kind(dtype), value)

    def binary(self, name: str, dtype: str, a: int, b: int) -> int:
        """TensorIR's node ``name`` on two values of ``dtype``."""
        if name in _SWAPPED:
            name, a, b = _SWAPPED[name], b, a
        if name in _EXTREME:
            number = _EXTREME[name][_family(dtype)]
            return self.code.glsl(number, self.kind(dtype), a, b)
        if name in _COMPARISON:
            kind, opcode = self.module.boolean(), _COMPARISON[name][_family(dtype)]
        else:
            kind, opcode = self.kind(dtype), _BINARY.get(name, (None,) * 4)[_family(dtype)]
        if opcode is None:
            raise Unsupported(f"{name} of {dtype}")
        result = self.code.value(opcode, kind, a, b)
        return self.rounded(dtype, result) if name in _BINARY else result

    def rounded(self, dtype: str, value: int) -> int:
        """The result of arithmetic on values of ``dtype``: bfloat16's is rounded."""
        return self.to_bfloat16(value) if dtype == "bfloat16" else value

    def select(self, dtype: str, condition: int, a: int, b: int) -> int:
        known = self.module.constant_value(condition)
        if known is not None:
            return a if known else b
        return self.code.value(Op.Select, self.kind(dtype), condition, a, b)

    def negated(self, condition: int) -> int:
        return self.code.value(Op.LogicalNot, self.module.boolean(), condition)

    def bitcast(self, dtype: str, value: int) -> int:
        """The bits of a value of 32 bits as one of ``dtype``."""
        return self.code.value(Op.Bitcast, self.kind(dtype), value)

    def bits_as(self, target: str, source: str, value: int) -> int:
        """The bits of a float32, int32 or uint32 as another of these."""
        if "float32" not in (source, target) or source == target:
            return value
        return self.bitcast(target, value)

    def cast(self, value: int, source: str, target: str) -> int:
        """``value`` of type ``source`` as the nearest of type ``target``; to integers, rounded
        towards zero.
        """
        if source == target:
            return value
        if source == "bool":
            one, zero = self.constant(target, 1), self.constant(target, 0)
            return self.select(target, value, one, zero)
        if target == "bool":
            return self.binary("NE", source, value, self.constant(source, 0))
        kind = self.kind(target)
        if source in _FLOATS and target in _FLOATS:
            if "float16" in (source, target):
                value = self.code.value(Op.FConvert, kind, value)
            return self.rounded(target, value)
        if target in _FLOATS:
            unsigned = source.startswith("uint")
            opcode = Op.ConvertUToF if unsigned else Op.ConvertSToF
            return self.rounded(target, self.code.value(opcode, kind, value))
        if source in _FLOATS:
            unsigned = target.startswith("uint")
            return self.code.value(Op.ConvertFToU if unsigned else Op.ConvertFToS, kind, value)
        return self._integer(value, source, target)

    def _integer(self, value: int, source: str, target: str) -> int:
        kind = self.kind(target)
        if BYTES[source] == BYTES[target]:
            return value
        unsigned = source.startswith("uint")
        known = self.module.constant_value(value)
        if known is not None:
            return self.constant(target, known % (1 << 32) if unsigned else known)
        return self.code.value(Op.UConvert if unsigned else Op.SConvert, kind, value)

    def to_bfloat16(self, value: int) -> int:
        """A float32 rounded to the nearest bfloat16, to the even one of two; a NaN stays one."""
        bits = self.bitcast("uint32", value)
        odd = self._word("BitwiseAnd", self._word("RShift", bits, 16), 1)
        half = self.binary("Add", "uint32", odd, self.constant("uint32", 0x7FFF))
        up = self.binary("Add", "uint32", bits, half)
        near = self.bitcast("float32", self._word("BitwiseAnd", up, 0xFFFF0000))
        is_nan = self.code.value(Op.IsNan, self.module.boolean(), value)
        nan = self.bitcast("float32", self.constant("uint32", 0x7FC00000))
        return self.select("float32", is_nan, nan, near)

    def low_half(self, word: int) -> int:
        """The bfloat16 in the lower 16 bits of ``word``."""
        return self.bitcast("float32", self._word("LShift", word, 16))

    def high_half(self, word: int) -> int:
        """The bfloat16 in the upper 16 bits of ``word``."""
        return self.bitcast("float32", self._word("BitwiseAnd", word, 0xFFFF0000))

    def halves(self, low: int, high: int) -> int:
        """The word with these two bfloat16."""
        lower = self._word("RShift", self.bitcast("uint32", low), 16)
        return self.binary("BitwiseOr", "uint32", lower, self.bitcast("uint32", high))

    def _word(self, name: str, word: int, operand: int) -> int:
        return self.binary(name, "uint32", word, self.constant("uint32", operand))


def _nearest_bfloat16(value: float) -> float:
    if math.isnan(value):
        return value
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits = bits + 0x7FFF + (bits >> 16 & 1) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]
