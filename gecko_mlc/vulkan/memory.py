"""Buffers in global and in shared memory, and how an access of several elements moves them.

Memory is seen as an array of components, or of vectors of two or four of them; an access is as few
vectors as possible. A component is an element, or a word of 32 bits with two elements of 16, or one
of another type than the array's. Accesses of several elements begin at a multiple of their size, as
on CUDA, where kernels would fail otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from gecko_mlc.vulkan.enumerants import Capability, MemoryAccess, Op, StorageClass
from gecko_mlc.vulkan.index import Index
from gecko_mlc.vulkan.packing import Packing
from gecko_mlc.vulkan.scalars import BYTES, Scalars

WORD = "word"  # a component of 32 bits, for elements of several types


@dataclasses.dataclass(frozen=True)
class View:
    """Components of a type and how many make a vector; ``dtype`` may be WORD."""

    dtype: str
    width: int

    @property
    def bytes(self) -> int:
        """Of a component."""
        return 4 if self.dtype == WORD else BYTES[self.dtype]

    def components(self, dtype: str, lanes: int) -> int:
        """How many hold that many elements of ``dtype``."""
        return lanes * BYTES[dtype] // self.bytes

    def kind(self, scalars: Scalars) -> int:
        """The type of a component in memory."""
        if self.dtype == WORD:
            return scalars.module.integer(32)
        if self.dtype == "bfloat16":
            scalars.module.capability(Capability.Int16)
            return scalars.module.integer(16)
        return scalars.kind(self.dtype)


class Memory:
    """Loads and stores through pointers of one storage class.

    ``exchanged`` is whether threads may load what other threads of the kernel have stored.
    ``base`` gives, for a view, the pointer and the indices that lead to its array; of global
    memory, if asked, to the array from an element of it on, whose number has 64 bits.
    """

    def __init__(
        self,
        scalars: Scalars,
        packing: Packing,
        storage: int,
        exchanged: bool,
        base: Callable[..., tuple[int, ...]],
        view: Callable[[str, int], View],
    ):
        self._scalars, self._packing = scalars, packing
        self._code, self._module = scalars.code, scalars.module
        self._storage, self._exchanged = storage, exchanged
        self._base, self._view = base, view

    def load(self, index: Index, dtype: str, lanes: int) -> list[int]:
        """The elements from ``index`` on."""
        view = self._view(dtype, lanes)
        components: list[int] = []
        for pointer, count in self._parts(view, index, dtype, lanes):
            kind = self._vector(view, count)
            loaded = self._code.result(Op.Load, kind, pointer, *self._operands(view, count))
            if count == 1:
                components.append(loaded)
                continue
            components += [
                self._code.value(Op.CompositeExtract, view.kind(self._scalars), loaded, number)
                for number in range(count)
            ]
        return self._elements(view, components, dtype)

    def store(self, index: Index, dtype: str, values: list[int]) -> None:
        """Store ``values`` from ``index`` on."""
        view = self._view(dtype, len(values))
        components = self._components(view, values, dtype)
        done = 0
        for pointer, count in self._parts(view, index, dtype, len(values)):
            part = components[done : done + count]
            done += count
            value = part[0]
            if count > 1:
                kind = self._vector(view, count)
                value = self._code.value(Op.CompositeConstruct, kind, *part)
            self._code.effect(Op.Store, pointer, value, *self._operands(view, count))

    def pointer(self, index: Index, dtype: str) -> tuple[int, int]:
        """The address of the component or vector that begins with the element at ``index``, and how
        many elements that is.
        """
        view = self._view(dtype, 1)
        per_vector = view.width * view.bytes // BYTES[dtype]
        return self._chain(view, view.width, *self._element(view, index, per_vector)), per_vector

    def _parts(self, view: View, index: Index, dtype: str, lanes: int) -> list[tuple[int, int]]:
        """Pointers to what makes up an access, and how many components each points to."""
        count, width = view.components(dtype, lanes), view.width
        ratio = max(1, view.bytes // BYTES[dtype])
        per_vector = width * ratio  # elements
        if count % width == 0:
            places = [
                self._element(view, index, per_vector, number) for number in range(count // width)
            ]
            return [(self._chain(view, width, *place), width) for place in places]
        vector = self._element(view, index, per_vector)
        return [
            (self._chain(view, 1, *vector, index.within(per_vector, ratio, number)), 1)
            for number in range(count)
        ]

    def _element(self, view: View, index: Index, size: int, number: int = 0) -> tuple[int, ...]:
        """The pointer and the indices of the array's element that is ``number`` behind the one at
        ``index``; one is ``size`` of what the index counts.
        """
        if index.wide and self._storage == StorageClass.PhysicalStorageBuffer:
            # A chain's offset must not be counted on to have more than 32 bits.
            base = self._base(view, index.over(size))
            return (*base, self._scalars.constant("int32", number))
        return (*self._base(view), index.over(size, number))

    def _chain(self, view: View, width: int, *indices: int) -> int:
        pointer = self._module.pointer(self._storage, self._vector(view, width))
        return self._code.value(Op.AccessChain, pointer, *indices)

    def _vector(self, view: View, width: int) -> int:
        kind = view.kind(self._scalars)
        return kind if width == 1 else self._module.vector(kind, width)

    def _operands(self, view: View, count: int) -> tuple[int, ...]:
        """What a load or store says of the memory it accesses."""
        seen = MemoryAccess.NonPrivatePointer if self._exchanged else 0
        if self._storage == StorageClass.PhysicalStorageBuffer:
            return (seen | MemoryAccess.Aligned, count * view.bytes)
        return (seen,)

    def _elements(self, view: View, components: list[int], dtype: str) -> list[int]:
        if view.dtype == WORD:
            if BYTES[dtype] == 2:
                return [half for word in components for half in self._packing.unpack(word, dtype)]
            return [self._scalars.bits_as(dtype, "uint32", word) for word in components]
        if dtype == "bfloat16":
            word = self._module.integer(32)
            return [
                self._scalars.low_half(self._code.value(Op.UConvert, word, component))
                for component in components
            ]
        return components

    def _components(self, view: View, values: list[int], dtype: str) -> list[int]:
        if view.dtype == WORD:
            if BYTES[dtype] == 2:
                pairs = zip(values[::2], values[1::2], strict=True)
                return [self._packing.pack(low, high, dtype) for low, high in pairs]
            return [self._scalars.bits_as("uint32", dtype, value) for value in values]
        if dtype == "bfloat16":
            return [self._upper_half(value) for value in values]
        return values

    def _upper_half(self, value: int) -> int:
        """A bfloat16's 16 bits, as an integer of that size."""
        bits = self._scalars.bitcast("uint32", value)
        shift = self._scalars.constant("uint32", 16)
        high = self._scalars.binary("RShift", "uint32", bits, shift)
        return self._code.value(Op.UConvert, self._module.integer(16), high)
