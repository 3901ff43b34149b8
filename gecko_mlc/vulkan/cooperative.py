"""Cooperative matrices in SPIR-V: what the calls of ``tir_kernels.gpu.cooperative`` mean.

SPV_KHR_cooperative_matrix, and SPV_KHR_bfloat16 for matrices of bfloat16. A module with such
matrices has the Vulkan memory model: its accesses of shared memory are NonPrivatePointer, and its
barriers make what was written available and visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tvm.ir import Call, TensorLoad
from tvm.ir import Op as TirOp

from gecko_mlc.vulkan.code import Code
from gecko_mlc.vulkan.enumerants import Op
from gecko_mlc.vulkan.unsupported import Unsupported

_PREFIX = "cooperative_"
_TYPE, _LOAD, _STORE, _MULTIPLY_ADD = 4456, 4457, 4458, 4459
_CONSTANT_COMPOSITE = 44
_COOPERATIVE_MATRIX, _BFLOAT16, _BFLOAT16_MATRIX = 6022, 5116, 5118
_BFLOAT16_ENCODING = 0
_SUBGROUP = 3
_NON_PRIVATE_POINTER = 0x20
# Of a matrix: rows, columns, and what it is in a product.
_SIZE = 16
_LEFT, _RIGHT, _SUMS = 0, 1, 2
# How it lies in memory.
_BY_ROWS, _BY_COLUMNS = 0, 1
# A lane's part of a matrix in TensorIR.
_PART = 8

_LOADS = {
    "cooperative_load_left": (_LEFT, _BY_ROWS),
    "cooperative_load_right": (_RIGHT, _BY_COLUMNS),
    "cooperative_load_right_by_depth": (_RIGHT, _BY_ROWS),
}


def is_cooperative(call: Call) -> bool:
    """Whether the call is one of these."""
    return call.op.same_as(TirOp.get("tirx.call_extern")) and call.args[0].value.startswith(_PREFIX)


class CooperativeMatrices:
    """The matrices of one kernel: variables of its function, one for each matrix.

    ``place`` gives a pointer to the element of a shared array that holds a word of 32 bits, and how
    many words such an element has.
    """

    def __init__(self, code: Code, place: Callable[[TensorLoad], tuple[int, int]]):
        self._code, self._module, self._place = code, code.module, place
        self._registers: dict[tuple[int, int], int] = {}
        self._module.capability(_COOPERATIVE_MATRIX)
        self._module.extension("SPV_KHR_cooperative_matrix")

    def translate(self, call: Call) -> None:
        """The instructions of a call for which ``is_cooperative`` holds."""
        name = call.args[0].value
        operands = [argument for argument in call.args[1:]]
        if name in _LOADS:
            self._load(*_LOADS[name], *operands)
        elif name == "cooperative_clear_sums":
            self._clear(*operands)
        elif name == "cooperative_multiply_add":
            self._multiply_add(*operands)
        elif name == "cooperative_store_sums":
            self._store(*operands)
        else:
            raise Unsupported(f"a call of {name}, no operation of cooperative matrices")

    def written(self, call: Call) -> Iterator[int]:
        """The registers that such a call stores to."""
        name = call.args[0].value
        if name in _LOADS:
            yield self._register(call.args[1], _LOADS[name][0])
        elif name != "cooperative_store_sums":
            yield self._register(call.args[1], _SUMS)

    def _load(self, use: int, layout: int, matrix, source, stride) -> None:
        register = self._register(matrix, use)
        pointer, words = self._place(source.args[0])
        loaded = self._code.result(
            _LOAD,
            self._type(matrix, use),
            pointer,
            self._number(layout),
            self._number(stride.value // words),
            _NON_PRIVATE_POINTER,
        )
        self._code.write(register, loaded)

    def _store(self, target, matrix, stride) -> None:
        pointer, words = self._place(target.args[0])
        self._code.effect(
            _STORE,
            pointer,
            self._code.read(self._register(matrix, _SUMS)),
            self._number(_BY_ROWS),
            self._number(stride.value // words),
            _NON_PRIVATE_POINTER,
        )

    def _clear(self, matrix) -> None:
        zero = self._module.constant(self._module.floating(32), 0.0)
        zeros = self._module.declare_value(_CONSTANT_COMPOSITE, self._type(matrix, _SUMS), zero)
        self._code.write(self._register(matrix, _SUMS), zeros)

    def _multiply_add(self, sums, left, right) -> None:
        register = self._register(sums, _SUMS)
        product = self._code.result(
            _MULTIPLY_ADD,
            self._type(sums, _SUMS),
            self._code.read(self._register(left, _LEFT)),
            self._code.read(self._register(right, _RIGHT)),
            self._code.read(register),
        )
        self._code.write(register, product)

    def _register(self, matrix, use: int) -> int:
        """The variable of the matrix at an address in a local buffer."""
        part = matrix.args[0]
        key = part.source.__chandle__(), part.indices[0].value // _PART
        if key not in self._registers:
            self._registers[key] = self._code.register(self._type(matrix, use))
        return self._registers[key]

    def _type(self, matrix, use: int) -> int:
        return self._module.declare(
            _TYPE,
            self._component(str(matrix.args[0].source.ty.dtype.dtype)),
            self._number(_SUBGROUP),
            self._number(_SIZE),
            self._number(_SIZE),
            self._number(use),
        )

    def _component(self, dtype: str) -> int:
        if dtype != "bfloat16":
            return self._module.floating({"float16": 16, "float32": 32}[dtype])
        self._module.capability(_BFLOAT16)
        self._module.capability(_BFLOAT16_MATRIX)
        self._module.extension("SPV_KHR_bfloat16")
        return self._module.declare(Op.TypeFloat, 16, _BFLOAT16_ENCODING)

    def _number(self, value: int) -> int:
        return self._module.constant(self._module.integer(32), int(value))
