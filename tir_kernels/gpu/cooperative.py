"""A tile of a matrix product on a Vulkan device's matrix units (VK_KHR_cooperative_matrix).

Matrices of 16 x 16 belong to a whole warp; which lane has which element is the device's secret. In
TensorIR lane by lane: ``PART`` elements of a local buffer are one lane's part of a matrix, and only
the external functions below touch them (their meaning in SPIR-V: ``gecko_mlc.vulkan.cooperative``).
So that the rest of a kernel may know which sum is which, ``CooperativeTile`` takes the sums through
shared memory at the end, 16 rows of each warp at a time.

Rows in memory begin at multiples of 16 bytes. Shared memory is words of 32 bits, for operands of 16
bits and for sums alike; its rows are padded by 16 bytes: eight rows of a matrix then lie in
different banks.
"""

from __future__ import annotations

import dataclasses

from tvm.script import tirx as T

from .reduce import WARP
from .tensor_core import CHUNK
from .unit import GpuUnit
from .warp_tile import WarpTile

SIZE = 16  # rows and columns of a matrix
PART = SIZE * SIZE // WARP  # elements of a lane
WORDS = 4  # of a chunk of 16 bytes


def _matrix(fragments, number):
    """Number ``number`` of the matrices in a local buffer."""
    return fragments.ptr_to([number * PART])


def load_left(fragments, number, source, stride: int):
    """A left operand [row, k] from memory, rows ``stride`` words apart."""
    matrix = _matrix(fragments, number)
    return T.call_extern("int32", "cooperative_load_left", matrix, source, stride)


def load_right(fragments, number, source, stride: int, by_depth: bool):
    """A right operand from memory: [k, column] ``by_depth``, else [column, k]."""
    name = "cooperative_load_right_by_depth" if by_depth else "cooperative_load_right"
    return T.call_extern("int32", name, _matrix(fragments, number), source, stride)


def store_sums(target, fragments, number, stride: int):
    """Float32 sums [row, column] to shared memory."""
    matrix = _matrix(fragments, number)
    return T.call_extern("int32", "cooperative_store_sums", target, matrix, stride)


def clear_sums(fragments, number):
    return T.call_extern("int32", "cooperative_clear_sums", _matrix(fragments, number))


def multiply_add(sums, number, left, i, right, j):
    """sums[number] += left[i] @ right[j]."""
    return T.call_extern(
        "int32",
        "cooperative_multiply_add",
        _matrix(sums, number),
        _matrix(left, i),
        _matrix(right, j),
    )


def words(buffer, indices):
    """A chunk of 16-bit elements as words; it begins at a multiple of its size."""
    # The compiler must see that it is aligned, or it loads single elements.
    *outer, last = indices
    chunk = buffer[(*outer, T.Ramp(last // CHUNK * CHUNK, 1, CHUNK))]
    return T.reinterpret(f"uint32x{WORDS}", chunk)


@dataclasses.dataclass(frozen=True)
class CooperativeTile(WarpTile):
    """rows x columns by warp_rows x warp_columns warps; the right operand is [N, K] or [K, N].

    The members are those of ``tensor_core.TensorTile``. With two ``stages`` the next depth is put
    into shared memory while others still multiply; with one there is room for larger tiles.
    """

    stages: int = 2
    depth: int = 32

    group = CHUNK
    width = CHUNK
    runs_of_row = 1

    def __post_init__(self) -> None:
        chunks = [size * self.depth // CHUNK for size in (self.rows, self.columns)]
        sizes = [*self._warp_size, self.depth]
        if any(count % self.threads for count in chunks) or any(size % SIZE for size in sizes):
            raise ValueError(
                f"{self}: a warp's rows and columns and the depth must be multiples of {SIZE}, and "
                f"the chunks of both operands, {chunks}, multiples of the {self.threads} threads"
            )

    @property
    def sharers(self) -> int:
        return self.columns // self.width

    @property
    def shared_bytes(self) -> int:
        strips = self.warp_rows * self.warp_columns * SIZE * self._strip_stride
        return 4 * max(self.stages * self._stage, strips)

    def arena(self):
        return T.alloc_buffer((self.shared_bytes // 4,), "uint32", scope="shared")

    def shared(self, arena):
        return arena

    def scratch(self, arena, shape: tuple[int, ...]):
        """Float32 where the operands lie, for use between products."""
        return T.decl_buffer(shape, "float32", data=arena.data, scope="shared")

    def row(self, tx, run):
        at_once = WARP // self._row_lanes
        passes = SIZE // at_once
        warp = tx // WARP // self.warp_columns
        return (
            warp * self._warp_size[0]
            + run // passes * SIZE
            + run % passes * at_once
            + tx % WARP // self._row_lanes
        )

    def column(self, tx, run):
        return tx // WARP % self.warp_columns * self._warp_size[1] + tx % self._row_lanes * CHUNK

    def sharer(self, tx):
        return self.column(tx, 0) // CHUNK

    @property
    def _warp_size(self) -> tuple[int, int]:
        """Rows and columns of a warp."""
        return self.rows // self.warp_rows, self.columns // self.warp_columns

    @property
    def _row_lanes(self) -> int:
        """Lanes that share a row of a warp's sums."""
        return self._warp_size[1] // CHUNK

    @property
    def _strip_stride(self) -> int:
        """Words from a row of a warp's sums to the next."""
        return self._warp_size[1] + WORDS

    @property
    def _left_stride(self) -> int:
        return (self.depth + CHUNK) // 2

    @property
    def _right_stride(self) -> int:
        return ((self.columns if self.right_by_depth else self.depth) + CHUNK) // 2

    @property
    def _stage(self) -> int:
        """Words of both operands' tiles."""
        right_rows = self.depth if self.right_by_depth else self.columns
        return self.rows * self._left_stride + right_rows * self._right_stride

    def product(self, left, right):
        """As ``TensorTile.product``."""
        dtype, depth, threads, stages = self.dtype, self.depth, self.threads, self.stages
        by_depth, stage_size = self.right_by_depth, self._stage
        left_stride, right_stride = self._left_stride, self._right_stride
        right_base = self.rows * left_stride
        warp_rows_size, warp_columns_size = self._warp_size
        down, across = warp_rows_size // SIZE, warp_columns_size // SIZE
        left_row = depth // CHUNK  # chunks
        right_row = self.columns // CHUNK if by_depth else left_row
        left_loads = self.rows * left_row // threads
        right_loads = self.columns * left_row // threads
        strip_stride = self._strip_stride

        def left_chunk(operands, step, number):
            return left(operands, number // left_row, step, number % left_row * CHUNK)

        def right_chunk(operands, step, number):
            row, chunk = number // right_row, number % right_row
            if by_depth:
                return right(operands, chunk * CHUNK, step, row)
            return right(operands, row, step, chunk * CHUNK)

        @T.inline
        def load_chunk(values, number: int, buffer, indices, inside):
            target = T.meta_var(T.Ramp(number * WORDS, 1, WORDS))
            if inside is None:
                values[target] = words(buffer, indices)
            else:
                if inside:
                    values[target] = words(buffer, indices)
                else:
                    values[target] = T.Broadcast(T.uint32(0), WORDS)

        @T.inline
        def fetch(operands, next_left, next_right, step, tx):
            for i in T.unroll(left_loads):
                found = T.meta_var(left_chunk(operands, step, tx + i * threads))
                load_chunk(next_left, i, found[0], found[1], found[2])
            for i in T.unroll(right_loads):
                found = T.meta_var(right_chunk(operands, step, tx + i * threads))
                load_chunk(next_right, i, found[0], found[1], found[2])

        @T.inline
        def put(shared, base, values, loads: int, row_chunks: int, stride: int, tx):
            for i in T.unroll(loads):
                number = T.meta_var(tx + i * threads)
                target = T.meta_var(
                    base + number // row_chunks * stride + number % row_chunks * WORDS
                )
                shared[T.Ramp(target, 1, WORDS)] = values[T.Ramp(i * WORDS, 1, WORDS)]

        def left_source(shared, base, i, k, tx):
            row = tx // WARP // self.warp_columns * warp_rows_size + i * SIZE
            return shared.ptr_to([base + row * left_stride + k * (SIZE // 2)])

        def right_source(shared, base, j, k, tx):
            column = tx // WARP % self.warp_columns * warp_columns_size + j * SIZE
            if by_depth:
                offset = k * SIZE * right_stride + column // 2
            else:
                offset = column * right_stride + k * (SIZE // 2)
            return shared.ptr_to([base + right_base + offset])

        def strip(shared, column, tx):
            """A warp's 16 rows of float32 sums, from a column on."""
            return shared.ptr_to([tx // WARP * (SIZE * strip_stride) + column])

        def place_in_strip(tx, run, word):
            row = run * (WARP // self._row_lanes) + tx % WARP // self._row_lanes
            column = tx % self._row_lanes * CHUNK + word * WORDS
            return tx // WARP * (SIZE * strip_stride) + row * strip_stride + column

        passes = SIZE * self._row_lanes // WARP

        @T.inline
        def take(shared, sums, matrices, tx):
            """sums += what the matrices have."""
            values = T.alloc_local((WORDS,), "float32")
            for i in T.unroll(down):
                for j in T.unroll(across):
                    store_sums(strip(shared, j * SIZE, tx), matrices, i * across + j, strip_stride)
                T.tvm_storage_sync("shared")
                for run in T.unroll(passes):
                    for word in T.unroll(CHUNK // WORDS):
                        place = T.meta_var(place_in_strip(tx, run, word))
                        values[T.Ramp(0, 1, WORDS)] = T.reinterpret(
                            f"float32x{WORDS}", shared[T.Ramp(place, 1, WORDS)]
                        )
                        for e in T.unroll(WORDS):
                            first = T.meta_var(((i * passes + run) * 2 + word) * WORDS)
                            sums[first + e] = sums[first + e] + values[e]
                T.tvm_storage_sync("shared")

        @T.inline
        def multiply(shared, base, matrices, a, b, tx):
            for k in T.unroll(depth // SIZE):
                for i in T.unroll(down):
                    load_left(a, i, left_source(shared, base, i, k, tx), left_stride)
                for j in T.unroll(across):
                    load_right(b, j, right_source(shared, base, j, k, tx), right_stride, by_depth)
                    for i in T.unroll(down):
                        multiply_add(matrices, i * across + j, a, i, b, j)

        @T.inline
        def product(operands, shared, sums, steps, tx):
            next_left = T.alloc_local((left_loads * WORDS,), "uint32")
            next_right = T.alloc_local((right_loads * WORDS,), "uint32")
            a = T.alloc_local((down * PART,), dtype)
            b = T.alloc_local((across * PART,), dtype)
            matrices = T.alloc_local((down * across * PART,), "float32")
            if steps > 0:
                fetch(operands, next_left, next_right, 0, tx)
            for i in T.unroll(down * across):
                clear_sums(matrices, i)
            for step in T.serial(steps):
                base = T.meta_var(step % stages * stage_size)
                if stages == 1:
                    T.tvm_storage_sync("shared")
                put(shared, base, next_left, left_loads, left_row, left_stride, tx)
                put(shared, base + right_base, next_right, right_loads, right_row, right_stride, tx)
                T.tvm_storage_sync("shared")
                if step + 1 < steps:
                    fetch(operands, next_left, next_right, step + 1, tx)
                multiply(shared, base, matrices, a, b, tx)
            T.tvm_storage_sync("shared")
            take(shared, sums, matrices, tx)

        return product


def cooperative_tile(
    unit: GpuUnit, dtype: str, rows: int, columns: int, right_by_depth: bool, warps: int
) -> CooperativeTile:
    """A tile of about ``rows`` x ``columns`` within the unit's limits, for ``warps`` at most.

    Each warp's part is as square as may be: what it reads from shared memory then serves the most
    products. Fewer warps have larger parts, and more sums in registers.
    """
    if unit.threads < warps * WARP:
        warps = 4
    splits = [
        (down, warps // down)
        for down in (1, 2, 4, 8)
        if warps % down == 0 and rows % (down * SIZE) == 0 and columns % (warps // down * SIZE) == 0
    ]
    down, across = min(splits, key=lambda split: rows // split[0] + columns // split[1])
    # A deep step means few barriers: worth more than a second stage.
    for depth, stages in ((64, 2), (64, 1), (32, 1)):
        tile = CooperativeTile(dtype, rows, columns, down, across, right_by_depth, stages, depth)
        if tile.shared_bytes <= unit.shared:
            return tile
    raise ValueError(
        f"a tile of {rows} x {columns} takes {tile.shared_bytes} bytes of shared memory, "
        f"the device has {unit.shared}: a target without cooperative matrices is needed"
    )
