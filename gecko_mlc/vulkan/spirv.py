"""A SPIR-V module as words: what stands outside its function, each thing declared once."""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Any

from gecko_mlc.vulkan.enumerants import Capability, Decoration, Op, StorageClass

_MAGIC = 0x07230203
_VERSION = 0x00010600  # 1.6, which every Vulkan 1.3 reads
_PHYSICAL_STORAGE_BUFFER_64, _VULKAN = 5348, 3
_GL_COMPUTE, _LOCAL_SIZE = 5, 17


def instruction(opcode: int, *operands: int) -> tuple[int, ...]:
    """The words of an instruction."""
    return (len(operands) + 1 << 16 | opcode, *operands)


def text(value: str) -> tuple[int, ...]:
    """The words of a string: UTF-8, ended by a zero byte."""
    data = value.encode() + b"\0"
    data += b"\0" * (-len(data) % 4)
    return struct.unpack(f"<{len(data) // 4}I", data)


class Module:
    """Declarations of one compute shader. Ids are integers; asking again gives the same id.

    Integers are without sign: SPIR-V has the sign in its instructions.
    """

    def __init__(self) -> None:
        self._bound = 1
        self._capabilities: dict[int, None] = {}
        self._extensions: dict[str, None] = {}
        self._decorations: list[tuple[int, ...]] = []
        self._declarations: list[tuple[int, ...]] = []
        self._unique: dict[tuple, int] = {}
        self._interface: list[int] = []
        self._constants: dict[int, int | float | bool] = {}
        self._glsl: int | None = None
        self.capability(Capability.Shader)
        self.capability(Capability.PhysicalStorageBufferAddresses)
        self.capability(Capability.VulkanMemoryModel)

    def new_id(self) -> int:
        self._bound += 1
        return self._bound - 1

    def capability(self, number: int) -> None:
        """Declare that the module uses it."""
        self._capabilities[number] = None

    def has_capability(self, number: int) -> bool:
        return number in self._capabilities

    def extension(self, name: str) -> None:
        self._extensions[name] = None

    def glsl(self) -> int:
        """The extended instruction set GLSL.std.450."""
        if self._glsl is None:
            self._glsl = self.new_id()
        return self._glsl

    def decorate(self, target: int, decoration: int, *operands: int) -> None:
        self._decorations.append(instruction(Op.Decorate, target, decoration, *operands))

    def declare(self, opcode: int, *operands: int, unique: Any = None) -> int:
        """A type: its id. ``unique`` tells types apart whose operands are the same."""
        key = (opcode, operands, unique)
        if key not in self._unique:
            self._unique[key] = self.new_id()
            self._declarations.append(instruction(opcode, self._unique[key], *operands))
        return self._unique[key]

    # Types.

    def void(self) -> int:
        return self.declare(Op.TypeVoid)

    def boolean(self) -> int:
        return self.declare(Op.TypeBool)

    def integer(self, bits: int) -> int:
        return self.declare(Op.TypeInt, bits, 0)

    def floating(self, bits: int) -> int:
        return self.declare(Op.TypeFloat, bits)

    def vector(self, component: int, count: int) -> int:
        return self.declare(Op.TypeVector, component, count)

    def array(self, element: int, length: int) -> int:
        """Without a layout: for memory that only this shader sees."""
        return self.declare(Op.TypeArray, element, self.constant(self.integer(32), length))

    def pointer(self, storage: int, pointee: int) -> int:
        return self.declare(Op.TypePointer, storage, pointee)

    def block(self, members: list[int], offsets: list[int], unique: Any = None) -> int:
        """A structure in memory that others see, its members at ``offsets`` in bytes."""
        known = (Op.TypeStruct, tuple(members), unique) in self._unique
        result = self.declare(Op.TypeStruct, *members, unique=unique)
        if not known:
            self.decorate(result, Decoration.Block)
            for number, offset in enumerate(offsets):
                self.decorate_member(result, number, Decoration.Offset, offset)
        return result

    def decorate_member(self, target: int, member: int, decoration: int, *operands: int) -> None:
        self._decorations.append(
            instruction(Op.MemberDecorate, target, member, decoration, *operands)
        )

    def buffer_pointer(self, element: int, stride: int, writable: bool) -> int:
        """The type of an address: of a structure whose only member is an array of ``element``."""
        known = (Op.TypeRuntimeArray, (element,), None) in self._unique
        elements = self.declare(Op.TypeRuntimeArray, element)
        if not known:
            self.decorate(elements, Decoration.ArrayStride, stride)
        key = (Op.TypeStruct, (elements,), writable)
        known = key in self._unique
        structure = self.block([elements], [0], unique=writable)
        if not known and not writable:
            self.decorate_member(structure, 0, Decoration.NonWritable)
        return self.pointer(StorageClass.PhysicalStorageBuffer, structure)

    # Values.

    def constant(self, kind: int, value: int | float | bool) -> int:
        """A constant of a type that integer(), floating() or boolean() gave."""
        if kind == self.boolean():
            result = self.declare_value(Op.ConstantTrue if value else Op.ConstantFalse, kind)
        else:
            words = self._words(kind, value)
            result = self.declare_value(Op.Constant, kind, *words)
            if not isinstance(value, float):
                value = struct.unpack("<q" if len(words) == 2 else "<i", array("I", words))[0]
        self._constants[result] = value
        return result

    def constant_value(self, value: int) -> int | float | bool | None:
        """What the constant with that id is, an integer with sign; None if the id is of another
        kind.
        """
        return self._constants.get(value)

    def declare_value(self, opcode: int, kind: int, *operands: int) -> int:
        """A constant or a constant's composite: its id."""
        key = (opcode, kind, operands)
        if key not in self._unique:
            result = self._unique[key] = self.new_id()
            self._declarations.append(instruction(opcode, kind, result, *operands))
        return self._unique[key]

    def variable(self, storage: int, kind: int) -> int:
        """A new variable outside the function, of type ``kind``."""
        result = self.new_id()
        pointer = self.pointer(storage, kind)
        self._declarations.append(instruction(Op.Variable, pointer, result, storage))
        self._interface.append(result)
        return result

    def builtin(self, number: int, kind: int) -> int:
        """The input variable that the device sets."""
        key = ("builtin", number)
        if key not in self._unique:
            self._unique[key] = self.variable(StorageClass.Input, kind)
            self.decorate(self._unique[key], Decoration.BuiltIn, number)
        return self._unique[key]

    def _words(self, kind: int, value: int | float) -> tuple[int, ...]:
        if kind == self.floating(32):
            return struct.unpack("<I", struct.pack("<f", value))
        if self.has_capability(Capability.Float16) and kind == self.floating(16):
            return struct.unpack("<H", struct.pack("<e", value))
        if self.has_capability(Capability.Int64) and kind == self.integer(64):
            return struct.unpack("<2I", struct.pack("<Q", int(value) & (1 << 64) - 1))
        return (int(value) & 0xFFFFFFFF,)

    def assemble(self, threads: tuple[int, int, int], body: list[tuple[int, ...]]) -> bytes:
        """The module whose entry point ``main`` has the instructions ``body``."""
        main, function = self.new_id(), self.declare(Op.TypeFunction, self.void())
        lines = [instruction(Op.Capability, number) for number in self._capabilities]
        lines += [instruction(Op.Extension, *text(name)) for name in self._extensions]
        if self._glsl is not None:
            lines.append(instruction(Op.ExtInstImport, self._glsl, *text("GLSL.std.450")))
        lines.append(instruction(Op.MemoryModel, _PHYSICAL_STORAGE_BUFFER_64, _VULKAN))
        lines.append(instruction(Op.EntryPoint, _GL_COMPUTE, main, *text("main"), *self._interface))
        lines.append(instruction(Op.ExecutionMode, main, _LOCAL_SIZE, *threads))
        lines += self._decorations + self._declarations
        lines.append(instruction(Op.Function, self.void(), main, 0, function))
        lines += body
        lines.append(instruction(Op.FunctionEnd))
        words = array("I", (_MAGIC, _VERSION, 0, self._bound, 0))
        for line in lines:
            words.extend(line)
        if sys.byteorder == "big":
            words.byteswap()
        return words.tobytes()
