"""A tile of a matrix product on portable tensor cores: mma.sync m16n8k16 (sm_80 and newer).

``TensorTile`` and ``register_tile.RegisterTile`` have the same members, so that a kernel is written
once for both: ``rows`` x ``columns`` sums in ``accumulators`` per thread, filled by ``product``.
Accumulator ``run * width + j`` belongs to row ``row(tx, run)`` and column ``column(tx, run) + j``.

Tiles of both operands, ``depth`` deep, come by cp.async into a ring of ``stages`` in shared memory.
16-byte chunks are permuted within 128-byte lines so that neither cp.async nor ldmatrix meets a
bank twice (the instructions and their fragments: PTX ISA, "Warp Level Matrix Instructions").
"""

from __future__ import annotations

import dataclasses

from tvm.script import tirx as T

from .reduce import WARP
from .warp_tile import WarpTile

# Elements of a 16-byte chunk, and chunks of the 128 bytes that cover every bank.
CHUNK, _LINE = 8, 8


def both(first, second):
    """The conjunction of two conditions, each of which may be None: it holds."""
    if first is None or second is None:
        return second if first is None else first
    return T.And(first, second)


def copy_async(target, source, inside=None):
    """16 bytes from global to shared memory; zeros where ``inside`` (a condition, if any) fails."""
    if inside is None:
        return T.ptx["cp.async.cg.shared.global.L2::128B"](target, source, 16)
    size = T.Cast("uint32", T.Select(inside, 16, 0))
    return T.ptx["cp.async.cg.shared.global.L2::128B"](target, source, 16, size)


def load_matrices(registers, first, source, transposed: bool = False):
    """Four 8x8 matrices into ``registers[first:first + 4]``; a lane's ``source`` is one row."""
    form = ".trans" if transposed else ""
    return T.ptx[f"ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16"](
        *[registers[first + i] for i in range(4)], source
    )


def multiply_add(dtype: str, sums, indices, left, a, right, b):
    """sums[indices] += left[a:a + 4] @ right[b:b + 2], one m16n8k16 product of a warp."""
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    return T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"](
        *[sums[i] for i in indices],
        *[left[a + i] for i in range(4)],
        *[right[b + i] for i in range(2)],
        *[sums[i] for i in indices],
    )


@dataclasses.dataclass(frozen=True)
class TensorTile(WarpTile):
    """rows x columns by warp_rows x warp_columns warps; the right operand is [N, K] or [K, N].

    Rows of an [N, K] are dealt to the 8x8 matrices so that a thread's columns come in runs of 8.
    """

    stages: int = 4
    depth: int = 32

    group = CHUNK
    scope = "shared.dyn"

    @property
    def shared_bytes(self) -> int:
        return self.stages * self._stage * 2

    def arena(self):
        """All of the tile's shared memory; to be called once in a kernel's body."""
        return T.alloc_buffer((self.shared_bytes,), "uint8", scope=self.scope)

    def scratch(self, arena, shape: tuple[int, ...]):
        """A float32 buffer over ``arena``, for use while no product runs."""
        return T.decl_buffer(shape, "float32", data=arena.data, scope=self.scope)

    def shared(self, arena):
        """The shared memory of ``product``, over ``arena``."""
        return T.decl_buffer(
            (self.stages * self._stage,), self.dtype, data=arena.data, scope=self.scope
        )

    @property
    def width(self) -> int:
        return 2 if self.right_by_depth else 2 * min(4, self._tiles[1])

    @property
    def runs_of_row(self) -> int:
        """Consecutive runs of one thread that lie in the same row."""
        return self._tiles[1] * 2 // self.width

    @property
    def sharers(self) -> int:
        """Threads that hold parts of the same row; ``sharer`` numbers them."""
        return 4 * self.warp_columns

    @property
    def _stage(self) -> int:
        return (self.rows + self.columns) * self.depth

    @property
    def _tiles(self) -> tuple[int, int]:
        """Products of a warp, down and across."""
        return self.rows // self.warp_rows // 16, self.columns // self.warp_columns // 8

    def row(self, tx, run):
        warp = tx // WARP // self.warp_columns
        half = run // self.runs_of_row
        return warp * (self.rows // self.warp_rows) + half * 8 + tx % WARP // 4

    def column(self, tx, run):
        warp = tx // WARP % self.warp_columns
        # A quad's four lanes lie side by side, ``width`` columns each.
        return (
            warp * (self.columns // self.warp_columns)
            + run % self.runs_of_row * (4 * self.width)
            + tx % 4 * self.width
        )

    def sharer(self, tx):
        return tx // WARP % self.warp_columns * 4 + tx % 4

    def _sums(self, i: int, j: int) -> list[int]:
        """Accumulators of product (i, j) in the order of the instruction's registers."""
        per_run = self.width // 2
        return [
            ((2 * i + half) * self.runs_of_row + j // per_run) * self.width + j % per_run * 2 + e
            for half in range(2)
            for e in range(2)
        ]

    def _slot(self, rank, chunk):
        """Where a chunk of the row stands that is number ``rank`` of eight read at once."""
        return chunk ^ (rank // (_LINE * CHUNK // self.depth))

    def product(self, left, right):
        """An inline (operands, shared, sums, steps, tx): sums += left @ right, ``depth`` a step.

        ``left(operands, row, step, k)`` and ``right(operands, column, step, k)`` give a buffer, the
        indices of ``group`` elements in it, neighbours in k (``right_by_depth``: in columns), and a
        condition without which they are zero, or None. All threads of the CTA take part; on return
        ``shared`` is free.
        """
        dtype, depth, stages, threads = self.dtype, self.depth, self.stages, self.threads
        rows, columns, stage_size = self.rows, self.columns, self._stage
        down, across = self._tiles
        chunks = depth // CHUNK
        inner = depth // 16
        warp_rows_size, warp_columns_size = rows // self.warp_rows, columns // self.warp_columns
        by_depth, width = self.right_by_depth, self.width
        right_base = rows * depth

        def left_target(row, chunk):
            return row * depth + self._slot(row % 8, chunk) * CHUNK

        def right_rank(column):
            return column % 2 + column // width % 4 * 2

        def right_target(column, chunk):
            return right_base + column * depth + self._slot(right_rank(column), chunk) * CHUNK

        def right_depth_target(k, chunk):
            return right_base + k * columns + (chunk ^ (k % 8)) * CHUNK

        def copy_left(operands, shared, base, step, chunk):
            buffer, indices, inside = left(operands, chunk // chunks, step, chunk % chunks * CHUNK)
            target = base + left_target(chunk // chunks, chunk % chunks)
            return copy_async(shared.ptr_to([target]), buffer.ptr_to(indices), inside)

        def copy_right(operands, shared, base, step, chunk):
            if by_depth:
                k, column = chunk // (columns // CHUNK), chunk % (columns // CHUNK)
                buffer, indices, inside = right(operands, column * CHUNK, step, k)
                target = base + right_depth_target(k, column)
            else:
                column, part = chunk // chunks, chunk % chunks
                buffer, indices, inside = right(operands, column, step, part * CHUNK)
                target = base + right_target(column, part)
            return copy_async(shared.ptr_to([target]), buffer.ptr_to(indices), inside)

        @T.inline
        def fetch(operands, shared, step, tx):
            for i in T.unroll(-(-rows * chunks // threads)):
                if tx + i * threads < rows * chunks:
                    copy_left(operands, shared, step % stages * stage_size, step, tx + i * threads)
            for i in T.unroll(-(-columns * chunks // threads)):
                if tx + i * threads < columns * chunks:
                    copy_right(operands, shared, step % stages * stage_size, step, tx + i * threads)

        def load_left(shared, base, registers, first, i, k, tx):
            """Rows 0-7 and 8-15 at k, then both at k + 8, of the warp's tile ``i``."""
            lane = tx % WARP
            row = tx // WARP // self.warp_columns * warp_rows_size + lane % 16
            source = base + i * 16 * depth + left_target(row, k * 2 + lane // 16)
            return load_matrices(registers, first + 4 * i, shared.ptr_to([source]))

        def load_right(shared, base, registers, first, pair, k, tx):
            """At k and at k + 8: tile 2 * pair, then tile 2 * pair + 1."""
            lane = tx % WARP
            column = tx // WARP % self.warp_columns * warp_columns_size
            if by_depth:
                row = k * 16 + lane // 8 % 2 * 8 + lane % 8
                source = base + right_depth_target(row, column // CHUNK + 2 * pair + lane // 16)
            else:
                # The tiles of one run: column 2q + e of the j-th is the run's q * width + 2j + e.
                column = column + lane % 8 // 2 * width + lane // 16 * 2 + lane % 2
                pairs = width // 4
                offset = (pair // pairs * 4 * width + pair % pairs * 4) * depth
                source = base + offset + right_target(column, k * 2 + lane // 8 % 2)
            return load_matrices(registers, first + 4 * pair, shared.ptr_to([source]), by_depth)

        @T.inline
        def load(shared, base, a, b, half, k, tx):
            for i in T.serial(down):
                load_left(shared, base, a, half * down * 4, i, k, tx)
            for pair in T.serial(across // 2):
                load_right(shared, base, b, half * across * 2, pair, k, tx)

        @T.inline
        def multiply(sums, a, b, half):
            for i in T.serial(down):
                for j in T.serial(across):
                    multiply_add(
                        dtype, sums, self._sums(i, j), a, (half * down + i) * 4, b,
                        (half * across + j) * 2,
                    )  # fmt: skip

        @T.inline
        def product(operands, shared, sums, steps, tx):
            # Two sets of registers: one is loaded while the other is multiplied.
            a = T.alloc_local((2 * down * 4,), "uint32")
            b = T.alloc_local((2 * across * 2,), "uint32")
            for step in T.unroll(stages - 1):
                if step < steps:
                    fetch(operands, shared, step, tx)
                T.ptx["cp.async.commit_group"]()
            T.ptx["cp.async.wait_group"](stages - 2)
            T.tvm_storage_sync("shared")
            load(shared, 0, a, b, 0, 0, tx)
            for step in T.serial(steps):
                for k in T.unroll(inner):
                    if k == inner - 1:
                        T.ptx["cp.async.wait_group"](stages - 2)
                        T.tvm_storage_sync("shared")
                    base = T.meta_var((step + (k + 1) // inner) % stages * stage_size)
                    load(shared, base, a, b, (k + 1) % 2, (k + 1) % inner, tx)
                    if k == 0:
                        if step + stages - 1 < steps:
                            fetch(operands, shared, step + stages - 1, tx)
                        T.ptx["cp.async.commit_group"]()
                    multiply(sums, a, b, k % 2)
            T.tvm_storage_sync("shared")

        return product
