"""Cooperative matrices: what the functions that ``tir_kernels.gpu.cooperative`` calls are in SPIR-V.

SPV_KHR_cooperative_matrix, and SPV_KHR_bfloat16 for matrices of bfloat16. A module with such
matrices has the Vulkan memory model: accesses of shared memory that other threads are to see are
NonPrivatePointer, and barriers make what was written available and visible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.ir import Op as TirOp

from gecko_mlc.vulkan.enumerants import Capability, MemoryAccess, Op, Scope
from gecko_mlc.vulkan.unsupported import Unsupported

if TYPE_CHECKING:
    from gecko_mlc.vulkan.expressions import Expressions
    from gecko_mlc.vulkan.scalars import Scalars
    from gecko_mlc.vulkan.spirv import Module

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
NAMES = frozenset((*_LOADS, _CLEAR, _STORE, _MULTIPLY_ADD))


def has_matrices(body: tirx.Stmt) -> bool:
    """Whether a kernel has operations of cooperative matrices."""

    def find(call: Call):
        return tvm_ffi.structural.VisitInterrupt(True) if _is_operation(call) else None

    return tvm_ffi.structural_walk(body, (Call, find)) is not None


def declare(module: Module) -> None:
    """Make the module one with cooperative matrices; before anything else is declared."""
    module.capability(Capability.VulkanMemoryModel)
    module.capability(Capability.CooperativeMatrix)
    module.extension("SPV_KHR_cooperative_matrix")


class Matrices:
    """The cooperative matrices of one kernel, each a register of its function."""

    def __init__(self, scalars: Scalars):
        self._scalars, self._code, self._module = scalars, scalars.code, scalars.module
        self._registers: dict[tuple[int, int], int] = {}

    def translate(self, expressions: Expressions, call: Call) -> list[int]:
        """The instructions of one of the functions ``NAMES``; it has no value."""
        name, *operands = call.args
        if name.value in _LOADS:
            self._load(expressions, *_LOADS[name.value], *operands)
        elif name.value == _STORE:
            self._store(expressions, *operands)
        elif name.value == _CLEAR:
            self._clear(*operands)
        else:
            self._multiply_add(*operands)
        return []

    def written(self, body: tirx.Stmt) -> list[int]:
        """The registers that ``body`` may store to."""
        written: list[int] = []

        def find(call: Call) -> None:
            if _is_operation(call) and call.args[0].value != _STORE:
                use, _ = _LOADS.get(call.args[0].value, (_SUMS, None))
                written.append(self._register(call.args[1], use))

        tvm_ffi.structural_walk(body, (Call, find))
        return written

    def _load(self, expressions, use: int, layout: int, matrix, source, stride) -> None:
        loaded = self._code.result(
            Op.CooperativeMatrixLoad,
            self._type(matrix, use),
            *self._place(expressions, source, stride, layout),
        )
        self._code.write(self._register(matrix, use), loaded)

    def _store(self, expressions, target, matrix, stride) -> None:
        pointer, *rest = self._place(expressions, target, stride, _BY_ROWS)
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

    def _place(self, expressions, address, stride, layout: int) -> tuple[int, ...]:
        """Where a matrix lies in shared memory: a pointer to an array's element, the layout, the
        elements from one row (or column) to the next, and how memory is accessed.
        """
        word = address.args[0]
        memory = expressions.buffers.memory(word.source)
        dtype = str(word.source.ty.dtype.dtype)
        pointer, words = memory.pointer(expressions.index(word.indices[0]), dtype)
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


def _is_operation(call: Call) -> bool:
    return call.op.same_as(_CALL) and call.args[0].value in NAMES
