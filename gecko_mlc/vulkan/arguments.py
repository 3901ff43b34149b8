"""How a kernel gets its arguments: in the push constants, or in a block that these point to.

In the order of its parameters, each at its natural alignment, the whole rounded up to 8 bytes.
"""

from __future__ import annotations

import dataclasses

from tvm import tirx
from tvm.ir import PointerType

from gecko_mlc.vulkan.code import Code
from gecko_mlc.vulkan.enumerants import MemoryAccess, Op, StorageClass
from gecko_mlc.vulkan.scalars import BYTES
from gecko_mlc.vulkan.unsupported import Unsupported

ADDRESS = "address"
_SCALARS = ("int32", "uint32", "int64", "float32")


@dataclasses.dataclass(frozen=True)
class Argument:
    """``type`` is ADDRESS or a scalar type; ``dtype`` that of the elements at the address."""

    type: str
    dtype: str
    offset: int


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The parameters of a kernel and where its arguments lie, in a block of ``size`` bytes."""

    parameters: tuple[Argument, ...]
    size: int

    def load(self, code: Code, kinds: list[int], in_memory: bool) -> list[int]:
        """Values of the arguments, which are of the types ``kinds``, at the function's beginning.

        ``in_memory`` is whether the push constants hold the block's address instead of the block.
        """
        module = code.module
        offsets = [parameter.offset for parameter in self.parameters]
        index = module.integer(32)
        if not kinds:
            return []
        block = module.block(kinds, offsets, unique="arguments")
        storage, start = StorageClass.PushConstant, 0
        if in_memory:
            storage = StorageClass.PhysicalStorageBuffer
            address = module.pointer(storage, block)
            holder = module.block([address], [0], unique="address of arguments")
            start = code.at_entry(
                Op.Load,
                address,
                code.at_entry(
                    Op.AccessChain,
                    module.pointer(StorageClass.PushConstant, address),
                    module.variable(StorageClass.PushConstant, holder),
                    module.constant(index, 0),
                ),
            )
        else:
            start = module.variable(storage, block)
        values = []
        for number, (parameter, kind) in enumerate(zip(self.parameters, kinds, strict=True)):
            pointer = code.at_entry(
                Op.AccessChain,
                module.pointer(storage, kind),
                start,
                module.constant(index, number),
            )
            aligned = (MemoryAccess.Aligned, _bytes(parameter.type)) if in_memory else ()
            values.append(code.at_entry(Op.Load, kind, pointer, *aligned))
        return values


def arguments(function: tirx.PrimFunc) -> Arguments:
    """Those of a kernel."""
    parameters, offset = [], 0
    for variable in function.params:
        if isinstance(variable.ty, PointerType):
            kind, dtype = ADDRESS, str(variable.ty.element_type.dtype)
        else:
            kind = dtype = str(variable.ty.dtype)
            if kind not in _SCALARS:
                raise Unsupported(f"the parameter {variable.name} of type {kind}")
        size = _bytes(kind)
        offset = -(-offset // size) * size
        parameters.append(Argument(kind, dtype, offset))
        offset += size
    return Arguments(tuple(parameters), -(-offset // 8) * 8)


def _bytes(kind: str) -> int:
    return 8 if kind == ADDRESS else BYTES[kind]
