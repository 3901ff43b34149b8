"""Compute shaders in SPIR-V, run thread by thread in Python: a Vulkan device for tests.

It has what no driver without a GPU has, cooperative matrices, in subgroups of 32, and is made from
the specification alone. A thread is a generator that stops at barriers and at operations of its
subgroup. Shared memory begins as 0xFF (NaN); an address outside of all memory is an error.
Integers are Python's, reduced to their bits; pointers are addresses, but cells to variables of the
function; vectors are lists.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from spirv_arithmetic import ARITHMETIC, GLSL, NUMPY

SUBGROUP = 32
MATRIX = 16  # rows and columns
_FORMATS = {
    ("int", 16): "H",
    ("int", 32): "I",
    ("int", 64): "Q",
    ("float", 16): "e",
    ("float", 32): "f",
}
# Opcodes of types, with their names.
_TYPES = {
    19: "void",
    20: "bool",
    21: "int",
    22: "float",
    23: "vector",
    28: "array",
    29: "runtime array",
    30: "struct",
    32: "pointer",
    33: "function",
    4456: "matrix",
}
_LOAD_MATRIX, _STORE_MATRIX, _MULTIPLY_ADD = 4457, 4458, 4459
_BARRIER = 224
# The lane from which a lane of a subgroup gets its value.
_SHUFFLES: dict[int, Callable[[int, int], int]] = {
    345: lambda _lane, other: other,
    346: lambda lane, mask: lane ^ mask,
    347: lambda lane, distance: lane - distance,
    348: lambda lane, distance: lane + distance,
}
_WITH_RESULT = (_LOAD_MATRIX, _MULTIPLY_ADD, *_SHUFFLES)
# In a function, but without a result.
_NO_RESULT = (62, _BARRIER, 246, 247, 248, 249, 250, 253, 56, _STORE_MATRIX)
_INPUT, _WORKGROUP, _FUNCTION, _PUSH_CONSTANT = 1, 4, 7, 9


class Memory:
    """Buffers of bytes in one space of addresses."""

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def add(self, data: bytearray) -> int:
        """The address that the buffer gets."""
        self._buffers.append(data)
        return len(self._buffers) << 32

    def place(self, address: int, size: int) -> tuple[bytearray, int]:
        """The buffer and the offset in it of so many bytes."""
        number, offset = (address >> 32) - 1, address & 0xFFFFFFFF
        if not 0 <= number < len(self._buffers) or offset + size > len(self._buffers[number]):
            raise IndexError(f"{size} bytes at {address:#x} are in no buffer")
        return self._buffers[number], offset


@dataclasses.dataclass
class _Cell:
    """A variable of the function, or one that the device sets."""

    value: Any = None


@dataclasses.dataclass
class _Request:
    """A thread at an instruction that it does not execute alone, with the operands' values."""

    at: int
    opcode: int
    values: list[Any]


class Shader:
    """A module of SPIR-V; ``run`` executes its entry point."""

    def __init__(self, code: bytes):
        words = struct.unpack(f"<{len(code) // 4}I", code)
        assert words[0] == 0x07230203
        self.lines: list[tuple[int, tuple[int, ...]]] = []
        at = 5
        while at < len(words):
            size = words[at] >> 16
            self.lines.append((words[at] & 0xFFFF, words[at + 1 : at + size]))
            at += size
        self.threads = next(o[2:] for opcode, o in self.lines if opcode == 16 and o[1] == 17)
        self.types: dict[int, tuple] = {}
        self.type_of: dict[int, int] = {}  # of the result of an instruction
        self.constants: dict[int, Any] = {}
        self.variables: dict[int, int] = {}  # outside of the function, with their storage class
        self.decorations: dict[tuple[int, ...], int] = {}
        self.labels: dict[int, int] = {}
        self.begin = next(i for i, (opcode, _) in enumerate(self.lines) if opcode == 54) + 1
        for at, (opcode, o) in enumerate(self.lines):
            if opcode == 248:
                self.labels[o[0]] = at
            elif at >= self.begin and opcode not in _NO_RESULT:
                self.type_of[o[1]] = o[0]
            elif at < self.begin:
                self._declare(opcode, o)

    def _declare(self, opcode: int, o: tuple[int, ...]) -> None:
        if opcode in (71, 72) and len(o) == opcode - 68:
            self.decorations[o[:-1]] = o[-1]
        elif opcode in _TYPES:
            self.types[o[0]] = (_TYPES[opcode], *o[1:])
        elif opcode in (41, 42, 43, 44, 59):
            self.type_of[o[1]] = o[0]
        if opcode in (41, 42):
            self.constants[o[1]] = opcode == 41
        elif opcode == 43:
            _, bits = kind = self.types[o[0]][:2]
            data = struct.pack(f"<{len(o) - 2}I", *o[2:])[: bits // 8]
            self.constants[o[1]] = struct.unpack(f"<{_FORMATS[kind]}", data)[0]
        elif opcode == 44:
            parts = [self.constants[part] for part in o[2:]]
            matrix = self.types[o[0]][0] == "matrix"
            self.constants[o[1]] = np.full((MATRIX, MATRIX), parts[0]) if matrix else parts
        elif opcode == 59:
            self.variables[o[1]] = o[2]

    def pointee(self, pointer: int) -> int:
        """The type that an id of a pointer points to."""
        return self.types[self.type_of[pointer]][2]

    def size(self, kind: int) -> int:
        """Bytes of a type in memory."""
        name, *parts = self.types[kind]
        if name == "vector":
            return parts[1] * self.size(parts[0])
        if name == "array":
            return self.constants[parts[1]] * self._stride(kind)
        if name == "struct":
            return self.decorations[kind, len(parts) - 1, 35] + self.size(parts[-1])
        return 8 if name == "pointer" else parts[0] // 8

    def _stride(self, kind: int) -> int:
        """Bytes from an element of an array to the next."""
        return self.decorations.get((kind, 6)) or self.size(self.types[kind][1])

    def read(self, memory: Memory, address: int, kind: int) -> Any:
        name, *parts = self.types[kind]
        if name == "vector":
            step = self.size(parts[0])
            return [self.read(memory, address + i * step, parts[0]) for i in range(parts[1])]
        form = "Q" if name == "pointer" else _FORMATS[name, parts[0]]
        return struct.unpack_from(f"<{form}", *memory.place(address, self.size(kind)))[0]

    def write(self, memory: Memory, address: int, kind: int, value: Any) -> None:
        name, *parts = self.types[kind]
        if name == "vector":
            step = self.size(parts[0])
            for i, part in enumerate(value):
                self.write(memory, address + i * step, parts[0], part)
            return
        place = memory.place(address, self.size(kind))
        struct.pack_into(f"<{_FORMATS[name, parts[0]]}", *place, value)

    def walk(self, address: int, kind: int, indices: list[int]) -> int:
        """The address of a part of what lies at an address."""
        for index in indices:
            name, *parts = self.types[kind]
            if name == "struct":
                address, kind = address + self.decorations[kind, index, 35], parts[index]
            elif name == "vector":
                address, kind = address + index * self.size(parts[0]), parts[0]
            else:
                offset = index * self._stride(kind) & 0xFFFFFFFF  # as drivers do
                address, kind = address + offset, parts[0]
        return address

    def run(self, memory: Memory, push_constants: bytes, workgroups: int) -> None:
        """Executes workgroups 0 to ``workgroups`` of the first dimension, one after the other."""
        for group in range(workgroups):
            _Workgroup(self, memory, push_constants, group).run()


class _Workgroup:
    def __init__(self, shader: Shader, memory: Memory, push_constants: bytes, group: int):
        self._shader, self._memory = shader, memory
        self._constants = dict(shader.constants)
        self._inputs = {}
        for name, storage in shader.variables.items():
            if storage == _INPUT:
                self._inputs[name] = shader.decorations[name, 11]
                continue
            data = bytearray(b"\xff" * shader.size(shader.pointee(name)))
            if storage == _PUSH_CONSTANT:
                data[: len(push_constants)] = push_constants
            self._constants[name] = memory.add(data)
        self._group = group

    def run(self) -> None:
        count = self._shader.threads[0]
        threads = [self._thread(number) for number in range(count)]
        ready: dict[int, Any] = dict.fromkeys(range(count))
        waiting: dict[int, _Request] = {}
        while ready:
            for number, answer in ready.items():
                waiting.pop(number, None)
                try:
                    waiting[number] = threads[number].send(answer)
                except StopIteration:
                    continue
            ready = self._serve(waiting)
        assert not waiting, "threads wait for others, which do not come"

    def _serve(self, waiting: dict[int, _Request]) -> dict[int, Any]:
        """The threads that can go on, each with what it waited for."""
        count = self._shader.threads[0]
        places = {(request.opcode, request.at) for request in waiting.values()}
        if len(waiting) == count and len(places) == 1 and places.pop()[0] == _BARRIER:
            return dict.fromkeys(waiting)
        ready: dict[int, Any] = {}
        for first in range(0, count, SUBGROUP):
            numbers = range(first, first + SUBGROUP)
            lanes = [waiting[number] for number in numbers if number in waiting]
            if len(lanes) < SUBGROUP or any(lane.opcode == _BARRIER for lane in lanes):
                continue
            assert len({lane.at for lane in lanes}) == 1, "the threads of a subgroup diverge"
            if lanes[0].opcode in _SHUFFLES:
                ready.update(zip(numbers, self._shuffled(lanes), strict=True))
            else:
                ready.update(dict.fromkeys(numbers, self._together(lanes)))
        return ready

    def _thread(self, number: int) -> Generator[_Request, Any, None]:
        shader = self._shader
        inputs = {26: [self._group, 0, 0], 27: [number, 0, 0], 41: number % SUBGROUP}
        values: dict[int, Any] = {
            name: _Cell(inputs[built_in]) for name, built_in in self._inputs.items()
        }
        values.update(self._constants)
        at, block, before = shader.begin, 0, 0
        while True:
            opcode, o = shader.lines[at]
            at += 1
            if opcode == 248:
                block = o[0]
            elif opcode == 253:
                return
            elif opcode in (249, 250):
                if opcode == 250:
                    o = o[1:2] if values[o[0]] else o[2:3]
                at, before = shader.labels[o[0]], block
            elif opcode == 245:
                values[o[1]] = values[o[2 + 2 * o[3::2].index(before)]]
            elif opcode == 59:
                values[o[1]] = _Cell()
            elif opcode == 62:
                self._store(o, values)
            elif opcode in (_BARRIER, _STORE_MATRIX, *_WITH_RESULT):
                operands = o[2:] if opcode in _WITH_RESULT else o
                request = _Request(at - 1, opcode, [values.get(name) for name in operands])
                answer = yield request
                if opcode in _WITH_RESULT:
                    values[o[1]] = answer
            elif opcode not in (246, 247):
                values[o[1]] = self._value(opcode, o, values)

    def _store(self, o: tuple[int, ...], values: dict[int, Any]) -> None:
        target, value = values[o[0]], values[o[1]]
        if isinstance(target, _Cell):
            target.value = value
        else:
            self._shader.write(self._memory, target, self._shader.pointee(o[0]), value)

    def _value(self, opcode: int, o: tuple[int, ...], values: dict[int, Any]) -> Any:
        """The result of an instruction that a thread executes alone."""
        shader = self._shader
        operands: list[Any] = [values.get(name) for name in o[2:]]
        if opcode == 61:
            source = operands[0]
            if isinstance(source, _Cell):
                return source.value
            return shader.read(self._memory, source, o[0])
        if opcode == 65:
            return shader.walk(operands[0], shader.pointee(o[2]), operands[1:])
        if opcode == 80:
            return operands
        if opcode == 81:
            return operands[0][o[3]]
        if opcode in (117, 120):  # between pointers and integers
            return operands[0]
        if opcode == 124:
            return self._bits_as(o[0], shader.type_of[o[2]], operands[0])
        if opcode == 12:
            return GLSL[o[3]](*(values[name] for name in o[4:]))
        name, *parts = shader.types[o[0]]
        return ARITHMETIC[opcode](parts[0] if parts else 0, *operands)

    def _bits_as(self, kind: int, given: int, value: Any) -> Any:
        if self._shader.types[kind][0] == "pointer":
            return value
        scratch = Memory()
        address = scratch.add(bytearray(16))
        self._shader.write(scratch, address, given, value)
        return self._shader.read(scratch, address, kind)

    # What a subgroup does together.

    def _shuffled(self, lanes: list[_Request]) -> list[Any]:
        """What each lane gets; from a lane that there is not, something else."""
        results = []
        for lane, request in enumerate(lanes):
            source = _SHUFFLES[request.opcode](lane, request.values[2])
            value = lanes[source % SUBGROUP].values[1]
            results.append(value if 0 <= source < SUBGROUP else type(value)(0x7FFF))
        return results

    def _together(self, lanes: list[_Request]) -> Any:
        one = lanes[0]
        o = self._shader.lines[one.at][1]
        if one.opcode == _MULTIPLY_ADD:
            left, right, sums = (value.astype(np.float64) for value in one.values[:3])
            return (left @ right + sums).astype(np.float32)
        store = one.opcode == _STORE_MATRIX
        pointer = o[0] if store else o[2]
        matrix_type = self._shader.types[self._shader.type_of[o[1]]]
        component = self._shader.types[matrix_type[1]]
        sizes = [self._shader.constants[number] for number in matrix_type[2:5]]
        assert sizes == [3, MATRIX, MATRIX], "a matrix of another scope or size"
        layout_at = 2 if store else 1
        places = {(lane.values[0], *lane.values[layout_at : layout_at + 2]) for lane in lanes}
        assert len(places) == 1, "a matrix lies elsewhere for other threads"
        address, layout, stride = places.pop()
        step, bytes_ = stride * self._shader.size(self._shader.pointee(pointer)), component[1] // 8
        assert address % 16 == 0 and step % 16 == 0, "a row of a matrix is not aligned"
        if store:
            self._store_matrix(one.values[1], address, step, layout)
            return None
        rows = []
        for i in range(MATRIX):
            data, offset = self._memory.place(address + i * step, MATRIX * bytes_)
            rows.append(_numbers(component, bytes(data[offset : offset + MATRIX * bytes_])))
        return np.stack(rows) if layout == 0 else np.stack(rows).T

    def _store_matrix(self, matrix: np.ndarray, address: int, step: int, layout: int) -> None:
        for i, row in enumerate(matrix if layout == 0 else matrix.T):
            data, offset = self._memory.place(address + i * step, 4 * MATRIX)
            data[offset : offset + 4 * MATRIX] = row.astype(np.float32).tobytes()


def _numbers(component: tuple, data: bytes) -> np.ndarray:
    """Numbers in memory as float32."""
    if component[2:] == (0,):  # bfloat16
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, NUMPY[component[1]]).astype(np.float32)
