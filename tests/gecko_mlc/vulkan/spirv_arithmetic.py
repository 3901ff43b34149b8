"""Arithmetic of SPIR-V by opcode: functions of the result's bits and the operands."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

NUMPY: dict[int, type[np.floating]] = {16: np.float16, 32: np.float32}


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


def _integer(function: Callable[..., int]) -> Callable[..., int]:
    return lambda bits, *values: function(*values) & ((1 << bits) - 1)


def _from_signed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda bits, *values: function(*(signed(v, bits) for v in values)) & ((1 << bits) - 1)


def _float(function: Callable[..., float]) -> Callable[..., float]:
    def rounded(bits: int, *values: float) -> float:
        return float(NUMPY[bits](function(*values)))

    return rounded


def _comparison(function: Callable[..., bool], by_sign: bool) -> Callable[..., bool]:
    """Of 32-bit integers."""
    if by_sign:
        return lambda _, a, b: function(signed(a, 32), signed(b, 32))
    return lambda _, a, b: function(a, b)


def _truncated(a: int, b: int) -> int:
    return int(a / b) if abs(a) < 1 << 52 else a // b


ARITHMETIC: dict[int, Callable[..., Any]] = {
    113: _integer(lambda value: value),
    114: _integer(lambda value: signed(value, 32)),  # from 32 bits
    115: _float(lambda value: value),
    128: _integer(operator.add),
    129: _float(operator.add),
    130: _integer(operator.sub),
    131: _float(operator.sub),
    132: _integer(operator.mul),
    133: _float(operator.mul),
    134: _integer(operator.floordiv),
    135: _from_signed(_truncated),
    137: _integer(operator.mod),
    138: _from_signed(lambda a, b: a - _truncated(a, b) * b),
    166: lambda _, a, b: a or b,
    167: lambda _, a, b: a and b,
    168: lambda _, a: not a,
    169: lambda _, condition, a, b: a if condition else b,
    170: _comparison(operator.eq, False),
    171: _comparison(operator.ne, False),
    172: _comparison(operator.gt, False),
    173: _comparison(operator.gt, True),
    175: _comparison(operator.ge, True),
    176: _comparison(operator.lt, False),
    177: _comparison(operator.lt, True),
    178: _comparison(operator.le, False),
    179: _comparison(operator.le, True),
    194: _integer(operator.rshift),
    195: lambda bits, a, b: (signed(a, bits) >> b) & ((1 << bits) - 1),
    196: _integer(operator.lshift),
    197: _integer(operator.or_),
    198: _integer(operator.xor),
    199: _integer(operator.and_),
}
# Of the extended set GLSL.std.450, on 32 bits.
GLSL: dict[int, Callable[..., int]] = {
    38: min,
    39: lambda a, b: min((a, b), key=lambda value: signed(value, 32)),
    41: max,
    42: lambda a, b: max((a, b), key=lambda value: signed(value, 32)),
}
