"""What instructions on constant integers and conditions come to."""

from __future__ import annotations

from gecko_mlc.vulkan.enumerants import Op
from gecko_mlc.vulkan.spirv import Module


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


_INTEGER = {
    Op.IAdd: lambda a, b: a + b,
    Op.ISub: lambda a, b: a - b,
    Op.IMul: lambda a, b: a * b,
    Op.BitwiseAnd: lambda a, b: a & b,
    Op.BitwiseOr: lambda a, b: a | b,
    Op.BitwiseXor: lambda a, b: a ^ b,
}
_COMPARISON = {
    Op.IEqual: lambda a, b: a == b,
    Op.INotEqual: lambda a, b: a != b,
    Op.SLessThan: lambda a, b: a < b,
    Op.SLessThanEqual: lambda a, b: a <= b,
    Op.LogicalAnd: lambda a, b: a and b,
    Op.LogicalOr: lambda a, b: a or b,
}


def fold(module: Module, opcode: int, kind: int, operands: tuple[int, ...]) -> int | None:
    """The id of an equal constant or operand; None where there is none."""
    if len(operands) != 2:
        return None
    a, b = (module.constant_value(operand) for operand in operands)
    if opcode in _COMPARISON:
        if a is None or b is None:
            return None
        return module.constant(kind, bool(_COMPARISON[opcode](a, b)))
    if opcode not in _INTEGER or isinstance(a, float) or isinstance(b, float):
        return None
    if a is not None and b is not None:
        bits = 32 if kind == module.integer(32) else 64
        return module.constant(kind, _signed(_INTEGER[opcode](a, b), bits))
    if b == 0 and opcode in (Op.IAdd, Op.ISub, Op.BitwiseOr, Op.BitwiseXor):
        return operands[0]
    if a == 0 and opcode in (Op.IAdd, Op.BitwiseOr, Op.BitwiseXor):
        return operands[1]
    if opcode == Op.IMul and (a == 1 or b == 1):
        return operands[0] if b == 1 else operands[1]
    return None
