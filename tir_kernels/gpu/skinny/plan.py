"""How a product of few rows is spread over the GPU: which outputs, inputs and loads are whose.

A CTA takes a contiguous run of outputs, all at once: each of its warps has a tile of 16 weight
rows, the m of an mma, or, where there are fewer tiles than warps, a part of a tile's inputs.
"""

from __future__ import annotations

import dataclasses

from ..reduce import WARP
from ..unit import GpuUnit

TILE = 16  # weight rows of an mma m16n8k16
BLOCK = 32  # inputs that a 16-byte copy of each of four lanes covers: two mma
_ITEMSIZE = 2
_BLOCK_BYTES = TILE * BLOCK * _ITEMSIZE


@dataclasses.dataclass(frozen=True)
class Shape:
    """y [batch, outputs] = x [batch, inputs] @ w^T, w [outputs, inputs] of ``dtype``.

    ``gated``: w is [2 outputs, inputs] and an output pairs row i with row outputs + i.
    """

    batch: int
    inputs: int
    outputs: int
    dtype: str
    gated: bool = False

    @property
    def halves(self) -> int:
        """Weight rows of an output."""
        return 2 if self.gated else 1


@dataclasses.dataclass(frozen=True)
class Spread:
    """Bounds of a plan. ``sms``: multiprocessors to keep busy; the others are for each CTA.

    A CTA has at most ``max_tiles`` tiles, and ``max_warps`` warps if it has not more tiles than
    that; a warp has at most ``max_depth`` blocks of 16 rows under way. ``shared`` is in bytes, by
    default what every GPU from sm_80 on has.
    """

    sms: int = 132
    max_tiles: int = 16
    max_warps: int = 8
    max_depth: int = 8
    shared: int = 98 * 1024

    def stages(self, batch: int, inputs: int) -> bool:
        """Whether any CTA has room for all activations [batch, inputs] at once."""
        warps = max(self.max_tiles, self.max_warps)
        warp_bytes = max(self.max_depth * _BLOCK_BYTES, 4 * TILE * batch)
        return warps * warp_bytes + _ITEMSIZE * batch * (inputs + BLOCK) <= self.shared


def takes(inputs: int, dtype: str) -> bool:
    """Whether tensor cores take weights of that type with so many inputs."""
    return dtype != "float32" and inputs % BLOCK == 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A ``shape`` on tensor cores. CTAs have ``least_tiles`` tiles at least.

    If the activations do not fit into shared memory, the inputs are done in chunks.
    """

    shape: Shape
    spread: Spread
    least_tiles: int = 1

    @property
    def fits(self) -> bool:
        """Whether tensor cores can serve the shape."""
        return takes(self.shape.inputs, self.shape.dtype) and any(
            self._bytes(n) <= self.spread.shared for n in self._possible_chunks
        )

    @property
    def span(self) -> int:
        """Outputs of a tile."""
        return TILE // self.shape.halves

    @property
    def ctas(self) -> int:
        """As many as multiprocessors, or a multiple of that."""
        tiles = -(-self.shape.outputs // self.span)
        return min(tiles, self.spread.sms * -(-tiles // (self.spread.sms * self.spread.max_tiles)))

    @property
    def tiles(self) -> int:
        """Tiles of a CTA."""
        outputs = -(-self.shape.outputs // self.ctas)
        return max(self.least_tiles, -(-outputs // self.span))

    @property
    def splits(self) -> int:
        """Warps that share the inputs of a tile."""
        blocks = self.shape.inputs // BLOCK
        most = max(1, self.spread.max_warps // self.tiles)
        return next(n for n in range(most, 0, -1) if blocks % n == 0)

    @property
    def warps(self) -> int:
        return self.tiles * self.splits

    @property
    def threads(self) -> int:
        return WARP * self.warps

    @property
    def items(self) -> int:
        """Outputs of a CTA, of all rows of the batch."""
        return self.tiles * self.span * self.shape.batch

    @property
    def chunks(self) -> int:
        """Parts of the inputs whose activations are in shared memory at a time."""
        return next(n for n in self._possible_chunks if self._bytes(n) <= self.spread.shared)

    @property
    def _possible_chunks(self) -> list[int]:
        """One, or numbers that leave each warp two blocks of a chunk or more."""
        units = self.shape.inputs // (self.splits * BLOCK)
        return [1, *(n for n in range(2, units // 2 + 1) if units % n == 0)]

    @property
    def chunk(self) -> int:
        """Inputs of a chunk."""
        return self.shape.inputs // self.chunks

    @property
    def buffers(self) -> int:
        """Chunks of activations in shared memory: one is copied while another is multiplied."""
        return min(self.chunks, 2)

    @property
    def slice(self) -> int:
        """Inputs of a chunk that one warp takes."""
        return self.chunk // self.splits

    @property
    def depth(self) -> int:
        """Blocks that a warp has under way."""
        blocks = self.slice // BLOCK
        most = min(self.spread.max_depth, blocks // self.buffers)
        return next(n for n in range(most, 0, -1) if blocks % n == 0)

    @property
    def parts(self) -> int:
        """Times that a warp's blocks go round their places in shared memory per chunk."""
        return self.slice // BLOCK // self.depth

    @property
    def stride(self) -> int:
        """Elements from row to row of the activations in shared memory; no two meet in a bank."""
        return self.chunk + BLOCK

    @property
    def columns(self) -> int:
        """Columns of an mma that hold a batch row."""
        return min(self.shape.batch, 8)

    @property
    def column_tiles(self) -> int:
        return -(-self.shape.batch // 8)

    @property
    def warp_bytes(self) -> int:
        """Shared memory for a warp's weights under way and, afterwards, its sums."""
        return max(self.spread.max_depth * _BLOCK_BYTES, 4 * TILE * self.shape.batch)

    @property
    def bytes(self) -> int:
        return self._bytes(self.chunks)

    def _bytes(self, chunks: int) -> int:
        """All shared memory."""
        stride = self.shape.inputs // chunks + BLOCK
        activations = _ITEMSIZE * min(chunks, 2) * self.shape.batch * stride
        return self.warps * self.warp_bytes + activations


def spread_for(batch: int, unit: GpuUnit) -> Spread:
    """For a batch on sm_90 (what was fastest on an H200 at the 7B shape), or on any from sm_80.

    Few rows of activations are soon brought into shared memory again: then small CTAs, several
    to a multiprocessor, keep it busier. With many rows each CTA must do more with them.
    """
    sm90, room = unit.tensor_cores == "wgmma", unit.shared
    if batch <= 4:
        return Spread(max_tiles=batch, shared=room)
    if batch <= 8:
        return Spread(shared=room) if sm90 else Spread(max_tiles=4, max_depth=4, shared=room)
    return Spread(max_warps=16 if sm90 else 8, max_depth=4, shared=room)
