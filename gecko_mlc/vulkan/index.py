"""Where an access begins: an index in elements, and what it is in larger units.

Kernels index vectors as ``x * 4`` and the like; dividing that expression instead of its value
spares the device the division.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx

from gecko_mlc.vulkan.scalars import Scalars

# How far the definitions of variables are followed.
_DEPTH = 12


class Index:
    """The index that ``expression`` gives. ``value`` translates an expression into an id;
    ``definitions`` has the expressions of variables in scope, by their handles.
    """

    def __init__(
        self,
        expression,
        scalars: Scalars,
        value: Callable[..., int],
        definitions: Mapping[int, object],
    ):
        self._expression, self._scalars, self._value = expression, scalars, value
        self._definitions = definitions
        self._dtype = str(expression.ty.dtype)

    @property
    def wide(self) -> bool:
        """Whether it has 64 bits."""
        return self._dtype == "int64"

    def over(self, divisor: int, offset: int = 0) -> int:
        """The index divided by a power of two and rounded down, plus ``offset``."""
        result = self._quotient(self._expression, divisor, _DEPTH)
        if result is None:
            result = self._operation("RShift", self._whole(), divisor.bit_length() - 1)
        return self._operation("Add", result, offset)

    def within(self, unit: int, ratio: int, offset: int = 0) -> int:
        """What remains of the index divided by ``unit``, divided by ``ratio``, plus ``offset``.

        Both divisors are powers of two.
        """
        if self._quotient(self._expression, unit, _DEPTH) is not None:
            return self._scalars.constant(self._dtype, offset)
        rest = self._operation("BitwiseAnd", self._whole(), unit - 1)
        if ratio > 1:
            rest = self._operation("RShift", rest, ratio.bit_length() - 1)
        return self._operation("Add", rest, offset)

    def _whole(self) -> int:
        return self._value(self._expression)

    def _operation(self, name: str, value: int, operand: int) -> int:
        if operand == 0 and name != "BitwiseAnd":
            return value
        constant = self._scalars.constant(self._dtype, operand)
        return self._scalars.binary(name, self._dtype, value, constant)

    def _quotient(self, node, divisor: int, depth: int) -> int | None:
        """``node`` / ``divisor`` if it is sure to be a multiple of it."""
        if divisor == 1:
            return self._value(node)
        if depth == 0:
            return None
        match node:
            case tirx.IntImm():
                if node.value % divisor:
                    return None
                return self._scalars.constant(str(node.ty.dtype), node.value // divisor)
            case tirx.Mul() if isinstance(node.b, tirx.IntImm):
                return self._multiple(node.a, node.b.value, divisor, depth)
            case tirx.LShift() if isinstance(node.b, tirx.IntImm):
                return self._multiple(node.a, 1 << node.b.value, divisor, depth)
            case tirx.Add() | tirx.Sub():
                a = self._quotient(node.a, divisor, depth - 1)
                b = self._quotient(node.b, divisor, depth - 1) if a is not None else None
                if a is None or b is None:
                    return None
                return self._scalars.binary(type(node).__name__, str(node.ty.dtype), a, b)
            case tirx.Cast():
                inner = self._quotient(node.value, divisor, depth - 1)
                if inner is None:
                    return None
                return self._scalars.cast(inner, str(node.value.ty.dtype), str(node.ty.dtype))
            case tirx.Var():
                definition = self._definitions.get(node.__chandle__())
                if definition is not None:
                    return self._quotient(definition, divisor, depth - 1)
        return None

    def _multiple(self, node, factor: int, divisor: int, depth: int) -> int | None:
        """``node * factor / divisor``."""
        dtype = str(node.ty.dtype)
        if factor % divisor == 0:
            constant = self._scalars.constant(dtype, factor // divisor)
            return self._scalars.binary("Mul", dtype, self._value(node), constant)
        if factor > 0 and divisor % factor == 0:
            return self._quotient(node, divisor // factor, depth - 1)
        return None
