"""Buffers of scope ``local``: registers of their own as far as indices are known, else arrays."""

from __future__ import annotations

from gecko_mlc.vulkan.enumerants import Op, StorageClass
from gecko_mlc.vulkan.index import Index
from gecko_mlc.vulkan.packing import Packing
from gecko_mlc.vulkan.scalars import Scalars


class Registers:
    """A buffer whose every index is a constant: a register for each element."""

    def __init__(self, scalars: Scalars, dtype: str):
        self._code, self._kind = scalars.code, scalars.kind(dtype)
        self._registers: dict[int, int] = {}

    def load(self, first: int, lanes: int) -> list[int]:
        return [self._code.read(self._register(first + lane)) for lane in range(lanes)]

    def store(self, first: int, values: list[int]) -> None:
        for lane, value in enumerate(values):
            self._code.write(self._register(first + lane), value)

    def existing(self) -> list[int]:
        """The registers used so far."""
        return list(self._registers.values())

    def _register(self, number: int) -> int:
        if number not in self._registers:
            self._registers[number] = self._code.register(self._kind)
        return self._registers[number]


class PackedRegisters(Registers):
    """Elements of 16 bits that are only stored in pairs, as from memory: a register for each word.

    A load that is under way is then not waited for to take its words apart.
    """

    def __init__(self, scalars: Scalars, packing: Packing, dtype: str):
        super().__init__(scalars, "uint32")
        self._packing, self._dtype = packing, dtype

    def load(self, first: int, lanes: int) -> list[int]:
        words = range(first // 2, (first + lanes + 1) // 2)
        elements = [
            element
            for word in super().load(words.start, len(words))
            for element in self._packing.unpack(word, self._dtype)
        ]
        return elements[first % 2 : first % 2 + lanes]

    def store(self, first: int, values: list[int]) -> None:
        pairs = zip(values[::2], values[1::2], strict=True)
        super().store(first // 2, [self._packing.pack(*pair, self._dtype) for pair in pairs])


class LocalArray:
    """A buffer with an index that is computed: an array in the function's own memory."""

    def __init__(self, scalars: Scalars, dtype: str, length: int):
        self._code, self._kind = scalars.code, scalars.kind(dtype)
        module = scalars.module
        self._pointer = module.pointer(StorageClass.Function, self._kind)
        self._array = self._code.array(module.array(self._kind, length))

    def load(self, index: Index, lanes: int) -> list[int]:
        return [
            self._code.result(Op.Load, self._kind, self._element(index, lane))
            for lane in range(lanes)
        ]

    def store(self, index: Index, values: list[int]) -> None:
        for lane, value in enumerate(values):
            self._code.effect(Op.Store, self._element(index, lane), value)

    def _element(self, index: Index, lane: int) -> int:
        return self._code.value(Op.AccessChain, self._pointer, self._array, index.over(1, lane))
