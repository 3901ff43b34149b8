"""A ring of shared-memory stages, filled by TMA and emptied by warpgroups that multiply."""

from __future__ import annotations

from tvm.backend.cuda.lang.pipeline import Pipeline, PipelineState
from tvm.script import tirx as T

from . import tile

# CUtensorMap encoding: no interleave, 128-byte swizzle, 128-byte L2 promotion, zeros outside.
_MODES = (0, 3, 2, 0)
_LOAD = "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes"


def encode(tensor_map, tensor, sizes: tuple, box_rows: int):
    """On the host: boxes [box_rows, 64] of a contiguous 16-bit tensor, ``sizes`` innermost first.

    The tensor may be viewed with other sizes than its own; all but two dimensions of a box are 1.
    """
    strides, bytes_before = [], 2
    for size in sizes[:-1]:
        bytes_before = bytes_before * size
        strides.append(bytes_before)
    box = (tile.PANEL, box_rows) + (1,) * (len(sizes) - 2)
    steps = (1,) * len(sizes)
    return T.call_packed(
        "runtime.cuTensorMapEncodeTiled",
        tensor_map,
        str(tensor.dtype),
        len(sizes),
        tensor.data,
        *sizes,
        *strides,
        *box,
        *steps,
        *_MODES,
    )


def load(shared, tensor_map, coordinates: tuple, barrier, multicast: int = 1) -> None:
    """Starts the load of the box at ``coordinates`` (innermost first), counted at ``barrier``.

    With ``multicast`` CTAs of a cluster, box and count arrive at the same place in each.
    """
    name = _LOAD.format(len(coordinates))
    operands = (shared, T.address_of(tensor_map), *coordinates, barrier)
    if multicast == 1:
        T.evaluate(T.ptx[name](*operands))
    else:
        T.evaluate(T.ptx[f"{name}.multicast::cluster"](*operands, (1 << multicast) - 1))


@T.meta_class
class Ring:
    """Barriers of ``stages`` stages: one thread loads, ``warps`` of each CTA of the cluster read.

    A stage may be loaded again once all of them have released it.
    """

    def __init__(self, pool, stages: int, warps: int, cluster: int = 1):
        self.stages = stages
        self.cluster = cluster
        self.pipe = Pipeline(pool, stages, full="tma", empty="mbar", init_empty=warps * cluster)

    def loading(self):
        """The position of the thread that loads, at the start."""
        return PipelineState(self.stages, 1)

    def reading(self):
        """The position of a reader, at the start."""
        return PipelineState(self.stages, 0)

    @T.inline
    def reserve(self, state, size):
        """Waits until the stage is free and announces ``size`` bytes."""
        self.pipe.empty.wait(state.stage, state.phase)
        self.pipe.full.arrive(state.stage, size)

    def barrier(self, state):
        """Where the loads of the stage are counted."""
        return self.pipe.full.ptr_to([state.stage])

    @T.inline
    def wait(self, state):
        self.pipe.full.wait(state.stage, state.phase)

    def release(self, stage, lane) -> None:
        """This warp has read the stage."""
        if self.cluster == 1:
            self._release(stage, lane)
        else:
            self._release_cluster(stage, lane)

    @T.inline
    def _release(self, stage, lane):
        if lane == 0:
            self.pipe.empty.arrive(stage)

    @T.inline
    def _release_cluster(self, stage, lane):
        if lane < self.cluster:
            self.pipe.empty.arrive(stage, remote=lane)

    def before(self, state):
        """The stage before the current one."""
        return T.if_then_else(state.stage == 0, self.stages - 1, state.stage - 1)


def panel_of_stage(ring_buffer):
    """Where a product finds its operand in a ring [stages, rows, 64]."""

    def at(stage, panel, row):
        return tile.rows_descriptor(ring_buffer.ptr_to([stage, row, 0]))

    return at


@T.inline
def _nothing(stage, panel):
    T.evaluate(0)


def accumulate(
    ring: Ring,
    a_at,
    b_at,
    columns: int,
    dtype: str,
    transposed: bool = False,
    before=_nothing,
    beside=_nothing,
):
    """An inline: sums = (sums if keep) + products over ``count`` >= 1 stages of the ring.

    ``a_at(stage, panel, row)`` and ``b_at(stage, panel, 0)`` are descriptors of the operands of the
    count's ``panel``-th stage; row is the warpgroup's first. ``before(stage, panel)`` comes before
    the product, ``beside(stage, panel)`` while it runs. One product is always running while the
    stage before is released.
    """

    @T.inline
    def run(sums, state, count, keep, row, tx):
        for panel in T.serial(count):
            ring.wait(state)
            before(state.stage, panel)
            tile.multiply(
                sums,
                a_at(state.stage, panel, row),
                b_at(state.stage, panel, 0),
                T.Or(keep, panel > 0),
                columns,
                dtype,
                transposed,
            )
            beside(state.stage, panel)
            if panel > 0:
                T.ptx.wgmma.wait_group.sync.aligned(1)
                ring.release(ring.before(state), tx % 32)
            state.advance()
        tile.finished(sums, columns)
        ring.release(ring.before(state), tx % 32)

    return run
