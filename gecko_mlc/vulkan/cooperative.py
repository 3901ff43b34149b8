"""Cooperative matrices: what the calls of ``tir_kernels.gpu.cooperative`` are in SPIR-V.

SPV_KHR_cooperative_matrix, and SPV_KHR_bfloat16 for matrices of bfloat16. A module with such
matrices has the Vulkan memory model: accesses of shared memory that other threads are to see are
NonPrivatePointer, and barriers make what was written available and visible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm.ir import Call, TensorLoad
from tvm.ir import Op as TirOp

from gecko_mlc.vulkan.enumerants import Capability, MemoryAccess, Op, Scope
from gecko_mlc.vulkan.unsupported import Unsupported

if TYPE_CHECKING:
    from gecko_mlc.vulkan.scalars import Scalars

_CALL = TirOp.get("tirx.call_extern")
# Of a matrix: rows, columns, and what it is in a product.
_SIZE = 16
_LEFT, _RIGHT, _SUMS = 0, 1, 2
# How it lies in memory.
_BY_ROWS, _BY_COLUMNS = 0, 1
# A lane's part of a matrix in TensorIR: elements of a local buffer.
_PART = 8
_BFLOAT16 = 0  # an encoding of a float
_WORDS = 4  # of 32 bits in 16 bytes, to which rows are aligned

_LOADS = {
    "cooperative_load_left": (_LEFT, _BY_ROWS),
    "cooperative_load_right": (_RIGHT, _BY_COLUMNS),
    "cooperative_load_right_by_depth": (_RIGHT, _BY_ROWS),
}
_CLEAR, _STORE = "cooperative_clear_sums", "cooperative_store_sums"
_MULTIPLY_ADD = "cooperative_multiply_add"


def device_multiplies(shapes: list[dict[str, Any]]) -> bool:
    """Whether a device's products (``runtime.vulkan.describe``) have those that kernels ask for.

    A device that has them in float16 has them in bfloat16 too if it has matrices of that type.
    """
    wanted = {
        **dict.fromkeys("mnk", _SIZE),
        **dict.fromkeys("ab", "float16"),
        **dict.fromkeys(("c", "result"), "float32"),
        "scope": "subgroup",
        "saturating": False,
    }
    return any(wanted.items() <= shape.items() for shape in shapes)


def is_cooperative(call: Call) -> bool:
    """Whether the call is one of these."""
    return call.op.same_as(_CALL) and call.args[0].value.startswith("cooperative_")


class CooperativeMatrices:
    """The matrices of one kernel, each a register of its function.

    ``place`` gives a pointer to the element of a shared array that begins with a word of 32 bits,
    and how many words such an element has.
    """

    def __init__(self, scalars: Scalars, place: Callable[[TensorLoad], tuple[int, int]]):
        self._scalars, self._place = scalars, place
        self._code, self._module = scalars.code, scalars.module
        self._registers: dict[tuple[int, int], int] = {}
        self._module.capability(Capability.CooperativeMatrix)
        self._module.extension("SPV_KHR_cooperative_matrix")

    def translate(self, call: Call) -> None:
        """The instructions of a call for which ``is_cooperative`` holds."""
        name, *operands = call.args
        if name.value in _LOADS:
            self._load(*_LOADS[name.value], *operands)
        elif name.value == _STORE:
            self._store(*operands)
        elif name.value == _CLEAR:
            self._clear(*operands)
        elif name.value == _MULTIPLY_ADD:
            self._multiply_add(*operands)
        else:
            raise Unsupported(f"a call of {name.value}, no operation of cooperative matrices")

    def written(self, call: Call) -> list[int]:
        """The registers that such a call stores to."""
        name, matrix = call.args[:2]
        if name.value == _STORE:
            return []
        use, _ = _LOADS.get(name.value, (_SUMS, None))
        return [self._register(matrix, use)]

    def _load(self, use: int, layout: int, matrix, source, stride) -> None:
        loaded = self._code.result(
            Op.CooperativeMatrixLoad,
            self._type(matrix, use),
            *self._access(source, stride, layout),
        )
        self._code.write(self._register(matrix, use), loaded)

    def _store(self, target, matrix, stride) -> None:
        pointer, *rest = self._access(target, stride, _BY_ROWS)
        sums = self._code.read(self._register(matrix, _SUMS))
        self._code.effect(Op.CooperativeMatrixStore, pointer, sums, *rest)

    def _clear(self, matrix) -> None:
        zero = self._scalars.constant("float32", 0.0)
        zeros = self._module.declare_value(Op.ConstantComposite, self._type(matrix, _SUMS), zero)
        self._code.write(self._register(matrix, _SUMS), zeros)

    def _multiply_add(self, sums, left, right) -> None:
        register = self._register(sums, _SUMS)
        product = self._code.result(
            Op.CooperativeMatrixMulAdd,
            self._type(sums, _SUMS),
            self._code.read(self._register(left, _LEFT)),
            self._code.read(self._register(right, _RIGHT)),
            self._code.read(register),
        )
        self._code.write(register, product)

    def _access(self, address, stride, layout: int) -> tuple[int, ...]:
        """Where a matrix lies in shared memory: a pointer to an array's element, the layout, the
        elements from one row (or column) to the next, and how memory is accessed.
        """
        pointer, words = self._place(address.args[0])
        if words != _WORDS or stride.value % words:
            raise Unsupported(f"a cooperative matrix whose rows are {stride.value} words apart")
        elements = self._number(stride.value // words)
        return pointer, self._number(layout), elements, MemoryAccess.NonPrivatePointer

    def _register(self, matrix, use: int) -> int:
        """That of the matrix at an address in a local buffer."""
        part = matrix.args[0]
        key = part.source.__chandle__(), part.indices[0].value // _PART
        if key not in self._registers:
            self._registers[key] = self._code.register(self._type(matrix, use))
        return self._registers[key]

    def _type(self, matrix, use: int) -> int:
        return self._module.declare(
            Op.TypeCooperativeMatrix,
            self._component(str(matrix.args[0].source.ty.dtype.dtype)),
            self._number(Scope.Subgroup),
            self._number(_SIZE),
            self._number(_SIZE),
            self._number(use),
        )

    def _component(self, dtype: str) -> int:
        if dtype != "bfloat16":
            return self._scalars.kind(dtype)
        self._module.capability(Capability.BFloat16Type)
        self._module.capability(Capability.BFloat16CooperativeMatrix)
        self._module.extension("SPV_KHR_bfloat16")
        return self._module.declare(Op.TypeFloat, 16, _BFLOAT16)

    def _number(self, value: int) -> int:
        return self._scalars.constant("uint32", int(value))
