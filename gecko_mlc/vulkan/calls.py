"""Calls in TensorIR and what stands for them in SPIR-V.

A translator takes the ``Expressions`` at hand and the call, and returns the ids of its value's
lanes, none if it has no value. ``INTRINSICS`` has TVM's own operations, by name without "tirx." or
"prim.", ``EXTERNS`` those called by ``T.call_extern`` and ``T.call_pure_extern``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.ir import Call, StringImm

from gecko_mlc.vulkan.enumerants import BuiltIn, Capability, Glsl, Op, Scope, Semantics
from gecko_mlc.vulkan.unsupported import Unsupported

if TYPE_CHECKING:
    from gecko_mlc.vulkan.expressions import Expressions

Translator = Callable[["Expressions", Call], list[int]]

# A barrier: what was stored to shared memory is there for all who come.
_SHARED = (
    Semantics.AcquireRelease
    | Semantics.WorkgroupMemory
    | Semantics.MakeAvailable
    | Semantics.MakeVisible
)
_WORDS = ("float32", "int32", "uint32")
_SHUFFLED = (*_WORDS, "bfloat16")
_HALVES = ("float16", "bfloat16")


def _function(number: int) -> Translator:
    """An elementary function in GLSL.std.450, computed in float32."""

    def translate(expressions: Expressions, call: Call) -> list[int]:
        operands = [operand for operand in call.args if not isinstance(operand, StringImm)]
        dtypes = [str(operand.ty.dtype.with_lanes(1)) for operand in operands]
        for operand, dtype in zip(operands, dtypes, strict=True):
            if dtype not in ("float32", *_HALVES):
                raise Unsupported(f"{call.op.name.removeprefix('tirx.')} of {operand.ty.dtype}")
        scalars = expressions.scalars

        def apply(*values: int) -> int:
            wide = [
                scalars.cast(value, dtype, "float32")
                for value, dtype in zip(values, dtypes, strict=True)
            ]
            result = expressions.code.glsl(number, scalars.kind("float32"), *wide)
            return scalars.cast(result, "float32", dtypes[0])

        return expressions.each(apply, *operands)

    return translate


def _erf(expressions: Expressions, call: Call) -> list[int]:
    """The error function to 3e-7 (Abramowitz and Stegun, 7.1.26)."""
    scalars, kind = expressions.scalars, expressions.scalars.kind("float32")

    def operate(name: str, a: int, b: int) -> int:
        return scalars.binary(name, "float32", a, b)

    def number(value: float) -> int:
        return scalars.constant("float32", value)

    def erf(x: int) -> int:
        size = expressions.code.glsl(Glsl.FAbs, kind, x)
        scaled = operate("Add", number(1.0), operate("Mul", number(0.3275911), size))
        t = operate("Div", number(1.0), scaled)
        series = number(1.061405429)
        for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
            series = operate("Add", operate("Mul", series, t), number(factor))
        square = operate("Mul", operate("Sub", number(0.0), x), x)
        tail = expressions.code.glsl(Glsl.Exp, kind, square)
        value = operate("Sub", number(1.0), operate("Mul", operate("Mul", series, t), tail))
        below = scalars.binary("LT", "float32", x, number(0.0))
        return scalars.select("float32", below, operate("Sub", number(0.0), value), value)

    return expressions.each(erf, call.args[1])


def _if_then_else(expressions: Expressions, call: Call) -> list[int]:
    condition, true, false = call.args
    return expressions.choose(call, condition, true, false)


def _reinterpret(expressions: Expressions, call: Call) -> list[int]:
    """The bits of words, or of pairs of 16-bit elements, as others."""
    scalars, packing = expressions.scalars, expressions.buffers.packing
    operand = call.args[-1]
    source, target = (str(node.ty.dtype.with_lanes(1)) for node in (operand, call))
    values = expressions.elements(operand)
    if source in _HALVES and len(values) % 2 == 0:
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [packing.pack(low, high, source) for low, high in pairs]
        source = "uint32"
    if source in _WORDS and target in _HALVES:
        words = [scalars.bits_as("uint32", source, value) for value in values]
        return [half for word in words for half in packing.unpack(word, target)]
    if source not in _WORDS or target not in _WORDS:
        raise Unsupported(f"reinterpret of {operand.ty.dtype} as {call.ty.dtype}")
    return [scalars.bits_as(target, source, value) for value in values]


def _likely(expressions: Expressions, call: Call) -> list[int]:
    return expressions.elements(call.args[0])


def _barrier(expressions: Expressions, call: Call) -> list[int]:
    """All threads of the CTA, or of a warp, have come here, and see what the others stored."""
    scope = Scope.Workgroup
    if call.args[0].value == "warp":
        if expressions.subgroup == 0:
            raise Unsupported("the barrier of a warp without subgroups")
        expressions.module.capability(Capability.GroupNonUniform)
        scope = Scope.Subgroup
    elif call.args[0].value != "shared":
        raise Unsupported(f"a barrier of scope {call.args[0].value}")
    semantics = _SHARED
    if expressions.buffers.exchanges_global():  # to wait for global memory costs time
        semantics |= Semantics.UniformMemory
    numbers = (scope, scope, semantics)
    expressions.code.effect(
        Op.ControlBarrier, *(expressions.scalars.constant("uint32", number) for number in numbers)
    )
    return []


def _shuffle_xor(expressions: Expressions, call: Call) -> list[int]:
    if not isinstance(call.args[2], tirx.IntImm) or call.args[2].value >= expressions.subgroup:
        _warp(expressions, call)
    expressions.module.capability(Capability.GroupNonUniformShuffle)
    mask = expressions.scalar(call.args[2])
    return [_shuffled(expressions, call, Op.GroupNonUniformShuffleXor, mask)]


def _shuffle(expressions: Expressions, call: Call) -> list[int]:
    warp = _warp(expressions, call)
    expressions.module.capability(Capability.GroupNonUniformShuffle)
    lane = expressions.scalar(call.args[2])
    if expressions.subgroup > warp:
        scalars = expressions.scalars
        outside = scalars.constant("uint32", -warp)
        first = scalars.binary("BitwiseAnd", "uint32", _lane(expressions), outside)
        lane = scalars.binary("Add", "uint32", first, lane)
    return [_shuffled(expressions, call, Op.GroupNonUniformShuffle, lane)]


def _shuffle_up(expressions: Expressions, call: Call) -> list[int]:
    """From the lane that many below; below the first, a lane keeps its own value."""
    return _relative(expressions, call, Op.GroupNonUniformShuffleUp)


def _shuffle_down(expressions: Expressions, call: Call) -> list[int]:
    """From the lane that many above; above the last, a lane keeps its own value."""
    return _relative(expressions, call, Op.GroupNonUniformShuffleDown)


def _relative(expressions: Expressions, call: Call, opcode: int) -> list[int]:
    warp = _warp(expressions, call)
    expressions.module.capability(Capability.GroupNonUniformShuffleRelative)
    scalars = expressions.scalars
    distance = expressions.scalar(call.args[2])
    within = scalars.constant("uint32", warp - 1)
    lane = scalars.binary("BitwiseAnd", "uint32", _lane(expressions), within)
    if opcode == Op.GroupNonUniformShuffleUp:
        inside = scalars.binary("LE", "uint32", distance, lane)
    else:
        top = scalars.binary("Add", "uint32", lane, distance)
        inside = scalars.binary("LE", "uint32", top, within)
    dtype = str(call.ty.dtype)
    shuffled = _shuffled(expressions, call, opcode, distance)
    return [scalars.select(dtype, inside, shuffled, expressions.scalar(call.args[1]))]


def _shuffled(expressions: Expressions, call: Call, opcode: int, other: int) -> int:
    dtype = str(call.ty.dtype)
    if dtype not in _SHUFFLED:
        raise Unsupported(f"{call.op.name.removeprefix('tirx.')} of {dtype}")
    scope = expressions.scalars.constant("uint32", Scope.Subgroup)
    value = expressions.scalar(call.args[1])
    expressions.module.capability(Capability.GroupNonUniform)
    return expressions.code.result(opcode, expressions.scalars.kind(dtype), scope, value, other)


def _lane(expressions: Expressions) -> int:
    """The number of this thread in its subgroup."""
    kind = expressions.module.integer(32)
    variable = expressions.module.builtin(BuiltIn.SubgroupLocalInvocationId, kind)
    return expressions.code.at_entry(Op.Load, kind, variable)


def _warp(expressions: Expressions, call: Call) -> int:
    """The lanes of the warp that a shuffle is in. Unsupported unless subgroups hold whole ones."""
    warp = call.args[4].value
    if expressions.subgroup == 0 or expressions.subgroup % warp:
        name = call.op.name.removeprefix("tirx.")
        raise Unsupported(f"{name} of {warp} lanes with subgroups of {expressions.subgroup}")
    return warp


INTRINSICS: dict[str, Translator] = {
    "exp": _function(Glsl.Exp),
    "exp2": _function(Glsl.Exp2),
    "log": _function(Glsl.Log),
    "log2": _function(Glsl.Log2),
    "sqrt": _function(Glsl.Sqrt),
    "rsqrt": _function(Glsl.InverseSqrt),
    "tanh": _function(Glsl.Tanh),
    "fabs": _function(Glsl.FAbs),
    "floor": _function(Glsl.Floor),
    "ceil": _function(Glsl.Ceil),
    "round": _function(Glsl.RoundEven),
    "trunc": _function(Glsl.Trunc),
    "sin": _function(Glsl.Sin),
    "cos": _function(Glsl.Cos),
    "pow": _function(Glsl.Pow),
    "if_then_else": _if_then_else,
    "likely": _likely,
    "reinterpret": _reinterpret,
    "tvm_storage_sync": _barrier,
    "tvm_warp_shuffle": _shuffle,
    "tvm_warp_shuffle_down": _shuffle_down,
    "tvm_warp_shuffle_up": _shuffle_up,
    "tvm_warp_shuffle_xor": _shuffle_xor,
}
EXTERNS: dict[str, Translator] = {
    **{
        f"{name}f": INTRINSICS[name]
        for name in ("exp", "exp2", "log", "log2", "sqrt", "rsqrt", "tanh", "fabs")
        + ("floor", "ceil", "round", "trunc", "sin", "cos", "pow")
    },
    "nearbyintf": INTRINSICS["round"],
    "erff": _erf,
}
