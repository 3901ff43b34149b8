"""How a product of few rows is spread over the GPU: which outputs, inputs and loads are whose.

A CTA takes a contiguous run of outputs, in tiles of 16 weight rows, the m of an mma. Its warps
share the inputs of ``row_tiles`` tiles at a time: every SM has enough loads under way however few
outputs there are.
"""

from __future__ import annotations

import dataclasses

WARP = 32
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """A ``shape`` on tensor cores, on at most ``max_ctas`` CTAs of ``warps`` warps.

    A warp has at most ``max_depth`` blocks of 16 rows under way. ``shared`` is how many bytes of
    shared memory a CTA may use; if the activations do not fit, the inputs are done in chunks.
    """

    shape: Shape
    max_ctas: int
    warps: int = 8
    row_tiles: int = 1
    max_depth: int = 8
    shared: int = 227 * 1024 - 1024
    dependent: bool = False

    @property
    def fits(self) -> bool:
        """Whether tensor cores can serve the shape."""
        return (
            self.shape.dtype != "float32"
            and self.shape.inputs % (self.splits * BLOCK) == 0
            and self._bytes(self._most_chunks) <= self.shared
        )

    @property
    def threads(self) -> int:
        return WARP * self.warps

    @property
    def splits(self) -> int:
        """Warps that share the inputs of a tile."""
        return self.warps // self.row_tiles

    @property
    def halves(self) -> int:
        """Weight rows of an output."""
        return 2 if self.shape.gated else 1

    @property
    def span(self) -> int:
        """Outputs of a tile."""
        return TILE // self.halves

    @property
    def ctas(self) -> int:
        return min(self.max_ctas, -(-self.shape.outputs // self.span))

    @property
    def rounds(self) -> int:
        """Times that a CTA's warps take up tiles, at most."""
        return -(-(self.shape.outputs // self.ctas + 1) // (self.span * self.row_tiles))

    @property
    def chunks(self) -> int:
        """Parts of the inputs whose activations are in shared memory at a time."""
        most = self._most_chunks
        return next(
            n for n in range(1, most + 1) if most % n == 0 and self._bytes(n) <= self.shared
        )

    @property
    def _most_chunks(self) -> int:
        return self.shape.inputs // (self.splits * BLOCK)

    @property
    def chunk(self) -> int:
        """Inputs of a chunk."""
        return self.shape.inputs // self.chunks

    @property
    def slice(self) -> int:
        """Inputs of a chunk that one warp takes."""
        return self.chunk // self.splits

    @property
    def depth(self) -> int:
        """Blocks that a warp has under way."""
        blocks = self.slice // BLOCK
        return next(n for n in range(min(self.max_depth, blocks), 0, -1) if blocks % n == 0)

    @property
    def parts(self) -> int:
        """Times that a warp's blocks go round their places in shared memory per tile and chunk."""
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
    def weight_bytes(self) -> int:
        """Shared memory for weights under way."""
        return self.warps * self.max_depth * _BLOCK_BYTES

    @property
    def partial_bytes(self) -> int:
        """Shared memory for each warp's sums of two tiles."""
        return 4 * 2 * self.warps * TILE * self.shape.batch

    @property
    def staged_bytes(self) -> int:
        """Shared memory for activations."""
        return _ITEMSIZE * self.shape.batch * self.stride

    @property
    def bytes(self) -> int:
        return self._bytes(self.chunks)

    def _bytes(self, chunks: int) -> int:
        """All shared memory: weights, partial sums, activations, sums kept between chunks."""
        activations = _ITEMSIZE * self.shape.batch * (self.shape.inputs // chunks + BLOCK)
        kept = 4 * self.rounds * self.row_tiles * TILE * self.shape.batch if chunks > 1 else 0
        return self.weight_bytes + self.partial_bytes + kept + activations
