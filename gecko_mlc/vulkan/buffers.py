"""The buffers of a kernel: which memory each lies in and how that is laid out."""

from __future__ import annotations

import math

from tvm import tirx

from gecko_mlc.vulkan.enumerants import Capability, Op, StorageClass
from gecko_mlc.vulkan.memory import WORD, Memory, View
from gecko_mlc.vulkan.packing import Packing
from gecko_mlc.vulkan.registers import LocalArray, PackedRegisters, Registers
from gecko_mlc.vulkan.scalars import BYTES, Scalars
from gecko_mlc.vulkan.unsupported import Unsupported
from gecko_mlc.vulkan.uses import BufferUses, Uses

_VECTOR = 16  # bytes: the widest access


def _widest(count: int) -> int:
    """The widest vector that divides ``count`` components."""
    return math.gcd(count, 4)


def global_view(dtype: str, lanes: int) -> View:
    """How global memory is seen for an access: several views of it may be used at once."""
    if lanes > 1 and BYTES.get(dtype) == 2 and lanes % 2 == 0:
        return View(WORD, _widest(lanes // 2))
    if BYTES.get(dtype) == 4:
        return View(dtype, _widest(lanes))
    return View(dtype, 1)


def address_view(dtype: str) -> View:
    """How global memory is seen by the pointer that is a kernel's argument."""
    return View(WORD if BYTES.get(dtype) == 2 else dtype, 1)


def shared_view(name: str, uses: Uses) -> View:
    """How shared memory is seen: in one way, by all accesses."""
    dtypes = {dtype for dtype, _ in uses.accesses}
    if "bool" in dtypes:
        raise Unsupported(f"the shared buffer {name} of type bool")
    sizes = [BYTES[dtype] * lanes for dtype, lanes in uses.accesses]
    if max(BYTES[dtype] for dtype in dtypes) <= 4 and all(size % 4 == 0 for size in sizes):
        dtype = dtypes.pop() if len(dtypes) == 1 else WORD
        widths = [_widest(size // 4) for size in sizes]
        return View(WORD if BYTES.get(dtype) == 2 else dtype, max(widths))
    if len(dtypes) > 1:
        raise Unsupported(
            f"the shared memory {name} with elements of {', '.join(sorted(dtypes))}, of which some "
            "are moved by less than 32 bits"
        )
    dtype = dtypes.pop()
    lanes = [lanes for _, lanes in uses.accesses]
    return View(dtype, max(map(_widest, lanes)) if BYTES[dtype] == 2 else 1)


class Buffers:
    """Finds or makes the memory of a buffer. ``shared`` counts its bytes of shared memory."""

    def __init__(self, scalars: Scalars, uses: BufferUses):
        self._scalars, self._module, self._uses = scalars, scalars.module, uses
        self.packing = Packing(scalars)
        self._addresses: dict[int, tuple[int, str]] = {}
        self._extents: dict[int, tuple[str, int]] = {}
        self._memories: dict[int, Memory] = {}
        self._locals: dict[int, Registers | LocalArray] = {}
        self.shared = 0

    def address_type(self, handle: int, dtype: str) -> int:
        """The type of a parameter that is the address of elements of ``dtype``."""
        if dtype not in BYTES:
            raise Unsupported(f"memory of type {dtype}")
        return self._pointer_type(address_view(dtype), self._uses.of(handle).stored)

    def address(self, handle: int, value: int, dtype: str) -> None:
        """A parameter of the kernel: ``value`` is the address of elements of ``dtype``."""
        self._addresses[handle] = (value, dtype)

    def exchanges_global(self) -> bool:
        """Whether threads may load from global memory what others of the kernel have stored."""
        return any(self._exchanged(root) for root in self._addresses)

    def _exchanged(self, root: int) -> bool:
        uses = self._uses.of(root)
        return uses.loaded and uses.stored

    def allocate(self, buffer: tirx.Var) -> None:
        """A buffer that the kernel allocates in shared or local memory."""
        size = 1
        for extent in buffer.ty.shape:
            if not isinstance(extent, tirx.IntImm):
                raise Unsupported(f"the buffer {buffer.name} of {extent} elements, no constant")
            size *= extent.value
        self._extents[buffer.__chandle__()] = (str(buffer.ty.dtype.dtype), size)

    def memory(self, buffer: tirx.Var) -> Memory:
        """That of a global or shared buffer."""
        root = self._uses.root(buffer.__chandle__())
        if root not in self._memories:
            if root in self._addresses:
                self._memories[root] = self._global(root, *self._addresses[root])
            else:
                self._memories[root] = self._shared(root, buffer.name)
        return self._memories[root]

    def local(self, buffer: tirx.Var) -> Registers | LocalArray:
        """The registers of a local buffer."""
        root = self._uses.root(buffer.__chandle__())
        dtype, size = self._extents[root]
        if str(buffer.ty.dtype.dtype) != dtype:
            raise Unsupported(f"{buffer.name}, local memory of {dtype} seen as {buffer.ty.dtype}")
        if root not in self._locals:
            uses = self._uses.of(root)
            if not uses.constant:
                self._locals[root] = LocalArray(self._scalars, dtype, size)
            elif uses.paired and BYTES.get(dtype) == 2:
                self._locals[root] = PackedRegisters(self._scalars, self.packing, dtype)
            else:
                self._locals[root] = Registers(self._scalars, dtype)
        return self._locals[root]

    def known_local(self, buffer: tirx.Var) -> Registers | LocalArray | None:
        """The registers of a local buffer, if it has been used."""
        return self._locals.get(self._uses.root(buffer.__chandle__()))

    def _global(self, root: int, address: int, dtype: str) -> Memory:
        writable = self._uses.of(root).stored
        code, scalars = self._scalars.code, self._scalars
        zero = scalars.constant("int32", 0)

        def base(view: View, number: int | None = None) -> tuple[int, ...]:
            if view.bytes == 2:
                self._module.capability(Capability.StorageBuffer16BitAccess)
            kind = self._pointer_type(view, writable)
            if number is not None:
                start = code.at_entry(Op.ConvertPtrToU, scalars.kind("int64"), address)
                size = scalars.constant("int64", view.width * view.bytes)
                offset = scalars.binary("Mul", "int64", number, size)
                place = scalars.binary("Add", "int64", start, offset)
                return (code.value(Op.ConvertUToPtr, kind, place), zero)
            if view == address_view(dtype):
                return (address, zero)
            return (code.at_entry(Op.Bitcast, kind, address), zero)

        return Memory(
            self._scalars,
            self.packing,
            StorageClass.PhysicalStorageBuffer,
            self._exchanged(root),
            base,
            global_view,
        )

    def _pointer_type(self, view: View, writable: bool) -> int:
        """The type of a pointer to global memory seen in that way."""
        kind = view.kind(self._scalars)
        if view.width > 1:
            kind = self._module.vector(kind, view.width)
        return self._module.buffer_pointer(kind, view.width * view.bytes, writable)

    def _shared(self, root: int, name: str) -> Memory:
        dtype, size = self._extents[root]
        view = shared_view(name, self._uses.of(root))
        element = view.width * view.bytes
        count = -(-size * (1 if dtype == "uint8" else BYTES[dtype]) // element)
        kind = view.kind(self._scalars)
        if view.width > 1:
            kind = self._module.vector(kind, view.width)
        variable = self._module.variable(StorageClass.Workgroup, self._module.array(kind, count))
        self.shared += count * element
        return Memory(
            self._scalars,
            self.packing,
            StorageClass.Workgroup,
            True,
            lambda _view: (variable,),
            lambda _dtype, _lanes: view,
        )
