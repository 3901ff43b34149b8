"""What a kernel does with its buffers, found before it is translated."""

from __future__ import annotations

import dataclasses

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op, TensorLoad

from gecko_mlc.vulkan.unsupported import Unsupported

_DATA = Op.get("tirx.buffer_data")


@dataclasses.dataclass
class Uses:
    """Of one buffer, or of all that share its memory.

    ``accesses`` are element types and how many adjacent ones are moved at once; ``constant`` is
    whether every index is a constant; ``paired``, whether stores are of even numbers of elements,
    from an even one on.
    """

    accesses: set[tuple[str, int]] = dataclasses.field(default_factory=set)
    loaded: bool = False
    stored: bool = False
    constant: bool = True
    paired: bool = True


class BufferUses:
    """Finds the uses of every buffer in a kernel's body; buffers are known by their handles."""

    def __init__(self, body: tirx.Stmt):
        self._roots: dict[int, int] = {}
        self._uses: dict[int, Uses] = {}
        tvm_ffi.structural_walk(body, (tirx.DeclBuffer, self._declare))
        tvm_ffi.structural_walk(body, ((TensorLoad, tirx.BufferStore), self._access))

    def root(self, handle: int) -> int:
        """The buffer or pointer whose memory a buffer lies in."""
        while handle in self._roots:
            handle = self._roots[handle]
        return handle

    def of(self, handle: int) -> Uses:
        """The uses of the memory in which the buffer lies."""
        return self._uses.setdefault(self.root(handle), Uses())

    def _declare(self, node: tirx.DeclBuffer) -> None:
        self._roots[node.buffer.__chandle__()] = source(node.data).__chandle__()

    def _access(self, node) -> None:
        stored = isinstance(node, tirx.BufferStore)
        buffer = node.buffer if stored else node.source
        uses = self.of(buffer.__chandle__())
        index = node.indices[0]
        lanes = index.ty.dtype.lanes
        if lanes > 1 and not is_run(index):
            lanes, constant = 1, False
        else:
            first = index.base if lanes > 1 else index
            constant = isinstance(first, tirx.IntImm)
        uses.accesses.add((str(buffer.ty.dtype.dtype), lanes))
        uses.stored |= stored
        uses.loaded |= not stored
        uses.constant &= constant
        if stored:
            uses.paired &= constant and lanes % 2 == 0 and first.value % 2 == 0


def is_run(index) -> bool:
    """Whether an index with several lanes goes from element to element."""
    if not isinstance(index, tirx.Ramp) or not isinstance(index.stride, tirx.IntImm):
        return False
    return index.stride.value == 1


def source(data) -> tirx.Var:
    """The buffer or pointer that a buffer's ``data`` is of."""
    if isinstance(data, Call) and data.op.same_as(_DATA):
        return data.args[0]
    if isinstance(data, tirx.Var):
        return data
    raise Unsupported(f"a buffer at the address {data}")
