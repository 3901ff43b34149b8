"""TensorIR's expressions as SPIR-V values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad

from gecko_mlc.vulkan.calls import EXTERNS, INTRINSICS
from gecko_mlc.vulkan.cooperative import CooperativeMatrices, is_cooperative
from gecko_mlc.vulkan.index import Index
from gecko_mlc.vulkan.registers import Registers
from gecko_mlc.vulkan.unsupported import Unsupported
from gecko_mlc.vulkan.uses import is_run

if TYPE_CHECKING:
    from gecko_mlc.vulkan.buffers import Buffers
    from gecko_mlc.vulkan.scalars import Scalars


class Expressions:
    """Translates expressions. A value is a list of ids, one for each lane.

    ``begin_statement`` has to be called before the expressions of each statement: within one,
    equal nodes have equal values.
    """

    def __init__(self, scalars: Scalars, buffers: Buffers, subgroup: int):
        self.scalars, self.buffers, self.subgroup = scalars, buffers, subgroup
        self.code, self.module = scalars.code, scalars.module
        self._variables: dict[int, list[int]] = {}
        self._definitions: dict[int, object] = {}
        self._done: dict[int, list[int]] = {}
        self._cooperative: CooperativeMatrices | None = None
        self._translators: dict[type, Callable] = {
            tirx.Var: self._variable,
            tirx.IntImm: self._constant,
            tirx.FloatImm: self._constant,
            tirx.Cast: self._cast,
            tirx.Not: self._not,
            tirx.BitwiseNot: self._complement,
            tirx.And: self._and,
            tirx.Or: self._or,
            tirx.Select: self._select,
            tirx.Let: self._let,
            tirx.Ramp: self._ramp,
            tirx.Broadcast: self._broadcast,
            TensorLoad: self._load,
            Call: self._call,
        }

    def begin_statement(self) -> None:
        self._done.clear()

    def bind(self, variable: tirx.Var, values: list[int], definition=None) -> None:
        """Give the variable these values. ``definition`` is the expression they come from."""
        handle = variable.__chandle__()
        self._variables[handle] = values
        self._definitions.pop(handle, None)
        if definition is not None and not _changes(definition):
            self._definitions[handle] = definition

    def scalar(self, node) -> int:
        """The id of a value with one lane."""
        values = self.elements(node)
        if len(values) != 1:
            raise Unsupported(f"{len(values)} lanes in {type(node).__name__}")
        return values[0]

    def elements(self, node) -> list[int]:
        """The ids of a value's lanes."""
        handle = node.__chandle__()
        if handle not in self._done:
            self._done[handle] = self._translators.get(type(node), self._binary)(node)
        return self._done[handle]

    def index(self, node) -> Index:
        return Index(node, self.scalars, self.scalar, self._definitions)

    def each(self, function: Callable[..., int], *operands) -> list[int]:
        """``function`` of the operands' lanes."""
        lanes = [self.elements(operand) for operand in operands]
        return [function(*values) for values in zip(*lanes, strict=True)]

    def conditional(self, dtype: str, condition: int, true, false) -> list[int]:
        """``true`` or ``false``, of which the other one must not be evaluated."""

        def arm(node):
            done, self._done = self._done, dict(self._done)
            result = self.scalar(node)
            self._done = done
            return result

        kind = self.scalars.kind(dtype)
        result = self.code.branch(condition, lambda: arm(true), lambda: arm(false), kind)
        assert result is not None
        return [result]

    def cooperative(self) -> CooperativeMatrices:
        """The cooperative matrices of the kernel, which has them from the first call on."""
        if self._cooperative is None:
            self._cooperative = CooperativeMatrices(self.scalars, self._place)
        return self._cooperative

    def _place(self, load: TensorLoad) -> tuple[int, int]:
        memory = self.buffers.memory(load.source)
        return memory.pointer(self.index(load.indices[0]), str(load.source.ty.dtype.dtype))

    def choose(self, node, condition, true, false) -> list[int]:
        """The value of ``node``, which is ``true`` or ``false``."""
        dtype = _dtype(node)
        if may_fail(true) or may_fail(false):
            return self.conditional(dtype, self.scalar(condition), true, false)
        lanes = len(self.elements(true))
        return [
            self.scalars.select(dtype, *values)
            for values in zip(
                self.elements(condition) * (lanes if condition.ty.dtype.lanes == 1 else 1),
                self.elements(true),
                self.elements(false),
                strict=True,
            )
        ]

    def _variable(self, node: tirx.Var) -> list[int]:
        values = self._variables.get(node.__chandle__())
        if values is None:
            raise Unsupported(f"the variable {node.name}, which has no value on the device")
        return values

    def _constant(self, node) -> list[int]:
        return [self.scalars.constant(_dtype(node), node.value)]

    def _binary(self, node) -> list[int]:
        name, dtype = type(node).__name__, _dtype(node.a)
        return self.each(lambda a, b: self.scalars.binary(name, dtype, a, b), node.a, node.b)

    def _cast(self, node: tirx.Cast) -> list[int]:
        source, target = _dtype(node.value), _dtype(node)
        return self.each(lambda value: self.scalars.cast(value, source, target), node.value)

    def _not(self, node: tirx.Not) -> list[int]:
        return self.each(self.scalars.negated, node.a)

    def _and(self, node: tirx.And) -> list[int]:
        if may_fail(node.b):
            return self.conditional("bool", self.scalar(node.a), node.b, tirx.IntImm("bool", 0))
        return self._binary(node)

    def _or(self, node: tirx.Or) -> list[int]:
        if may_fail(node.b):
            return self.conditional("bool", self.scalar(node.a), tirx.IntImm("bool", 1), node.b)
        return self._binary(node)

    def _select(self, node: tirx.Select) -> list[int]:
        return self.choose(node, node.condition, node.true_value, node.false_value)

    def _let(self, node: tirx.Let) -> list[int]:
        self.bind(node.var, self.elements(node.value))
        return self.elements(node.body)

    def _ramp(self, node: tirx.Ramp) -> list[int]:
        dtype = _dtype(node)
        value, stride = self.scalar(node.base), self.scalar(node.stride)
        values = [value]
        for _ in range(int(node.lanes) - 1):
            values.append(self.scalars.binary("Add", dtype, values[-1], stride))
        return values

    def _broadcast(self, node: tirx.Broadcast) -> list[int]:
        return self.elements(node.value) * int(node.lanes)

    def _load(self, node: TensorLoad) -> list[int]:
        buffer, (index,) = node.source, node.indices
        lanes = index.ty.dtype.lanes
        if lanes > 1 and not is_run(index):
            raise Unsupported(f"a load of {buffer.name} at indices that are not adjacent")
        first = index.base if lanes > 1 else index
        if buffer.ty.storage_scope != "local":
            memory = self.buffers.memory(buffer)
            return memory.load(self.index(first), str(buffer.ty.dtype.dtype), lanes)
        local = self.buffers.local(buffer)
        if isinstance(local, Registers):
            return local.load(first.value, lanes)
        return local.load(self.index(first), lanes)

    def _call(self, node: Call) -> list[int]:
        name = node.op.name.removeprefix("tirx.").removeprefix("prim.")
        if is_cooperative(node):
            self.cooperative().translate(node)
            return []
        if name in ("call_extern", "call_pure_extern"):
            name = node.args[0].value
            if name in EXTERNS:
                return EXTERNS[name](self, node)
            raise Unsupported(f"a call of the external function {name}")
        if name in INTRINSICS:
            return INTRINSICS[name](self, node)
        raise Unsupported(f"a call of {name}")

    def _complement(self, node: tirx.BitwiseNot) -> list[int]:
        dtype = _dtype(node)
        ones = self.scalars.constant(dtype, -1)
        return self.each(lambda a: self.scalars.binary("BitwiseXor", dtype, a, ones), node.a)


def _dtype(node) -> str:
    """The type of each lane."""
    return str(node.ty.dtype.with_lanes(1)) if node.ty.dtype.lanes > 1 else str(node.ty.dtype)


def _loads(node, scopes: tuple[str, ...]) -> bool:
    """Whether evaluating ``node`` loads from a buffer of such a scope."""

    def check(load: TensorLoad):
        found = load.source.ty.storage_scope in scopes
        return tvm_ffi.structural.VisitInterrupt(True) if found else None

    return tvm_ffi.structural_walk(node, (TensorLoad, check)) is not None


def may_fail(node) -> bool:
    """Whether ``node`` must not be evaluated unless asked for: it may load from beyond a buffer."""
    return _loads(node, ("global", "shared"))


def _changes(node) -> bool:
    """Whether the value of ``node`` depends on when it is evaluated."""
    return _loads(node, ("global", "shared", "local"))
