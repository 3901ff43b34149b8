"""Timestep decay norm of m consecutive steps of one sequence, in one kernel with clusters.

The mathematics is that of ``tir_kernels.gpu.timestep_norm``. A cluster of ``_CTAS`` CTAs has one
group of features: each keeps the values of ``_ROWS`` steps in registers, so that x is read once,
and tells the others what its steps add to the averages.
"""

from __future__ import annotations

import functools
import math

from tvm.script import tirx as T

from ...vector_math import f32
from ..reduce import WARP, shuffle_up
from ..timestep_norm import GroupMoments, decay, forgotten
from ..vectors import Vectors

_CTAS = 8  # of a cluster: the most that every GPU of the architecture takes
_ROWS = 256  # steps of a CTA, one of each thread
_WARPS = _ROWS // WARP
_SEGMENT = _CTAS * _ROWS  # steps
_REGISTERS = 64  # values of a thread, at most


def fits(dim: int, groups: int) -> bool:
    """Whether the values of a CTA's steps fit its registers, in wide accesses."""
    return dim // groups % 4 == 0 and dim // groups <= _REGISTERS


@functools.cache
def timestep_norm(
    dim: int,
    groups: int,
    betas: tuple[float, float],
    eps: float,
    norms: int,
    dtype: str,
    residual: bool,
):
    """y [m, D] = (x - M) * rsqrt(V + eps) * weight + bias, M and V the corrected averages.

    x [m, D] float32; state mean, var [layers+1, slots, G]. With ``residual`` the input is
    x' [m, D] = x + delta [m, D], which is written too.
    """
    size = dim // groups
    share = GroupMoments(size, 2)
    lanes, width, elements = share.lanes, share.width, share.elements
    at_once = _ROWS // lanes  # steps
    turns = _ROWS // at_once
    floats, typed = Vectors(width, "float32"), Vectors(width, dtype)
    logs = [math.log(beta) for beta in betas]

    @T.inline
    def send(value, target, peer):
        """target = value in the shared memory of CTA ``peer`` of the cluster."""
        address = T.alloc_local((1,), "uint32")
        T.ptx["mapa.shared::cluster.u32"](
            address[0], T.cuda.cvta_generic_to_shared(target), T.Cast("uint32", peer)
        )
        T.ptx["st.shared::cluster.f32"](address[0], value)

    @T.inline
    def scan(index, Scanned, WarpSums, tx):
        """Scanned[index] = what the warp's steps up to this one add to the average."""
        for n in T.unroll(WARP.bit_length() - 1):
            before: T.float32 = shuffle_up(Scanned[index], 1 << n)
            if tx % WARP >= 1 << n:
                Scanned[index] = Scanned[index] + decay(betas[index], 1 << n) * before
        if tx % WARP == WARP - 1:
            WarpSums[index, tx // WARP] = Scanned[index]

    @T.inline
    def tell(index, WarpSums, CtaSums, buffer, rank, tx):
        """What this CTA's steps add, to all CTAs of the cluster."""
        added: T.float32 = WarpSums[index, 0]
        for warp in T.unroll(_WARPS - 1):
            added = added * f32(betas[index] ** WARP) + WarpSums[index, warp + 1]
        if tx // _CTAS == index:
            send(added, CtaSums.ptr_to([buffer, index, rank]), tx % _CTAS)

    @T.inline
    def before(index, Scanned, WarpSums, CtaSums, buffer, rank, tx):
        """Scanned[index] = what all steps of the segment up to this one add."""
        of_warps: T.float32 = f32(0.0)
        for warp in T.unroll(_WARPS - 1):
            if warp < tx // WARP:
                of_warps = of_warps * f32(betas[index] ** WARP) + WarpSums[index, warp]
        of_ctas: T.float32 = f32(0.0)
        for peer in T.unroll(_CTAS - 1):
            if peer < rank:
                of_ctas = of_ctas * f32(betas[index] ** _ROWS) + CtaSums[buffer, index, peer]
        Scanned[index] = Scanned[index] + (
            decay(betas[index], tx % WARP + 1) * of_warps + decay(betas[index], tx + 1) * of_ctas
        )

    @T.inline
    def whole(index, Start, CtaSums, buffer):
        """Start[index]: the average a whole segment on."""
        added: T.float32 = CtaSums[buffer, index, 0]
        for peer in T.unroll(_CTAS - 1):
            added = added * f32(betas[index] ** _ROWS) + CtaSums[buffer, index, peer + 1]
        lost = T.meta_var(f32(-math.expm1(_SEGMENT * logs[index])))
        Start[index] = Start[index] + (added - lost * Start[index])

    @T.inline
    def body(fetch, settle, m, group, rank, tx, W, B, count, Mean, Var, layer, slot, Y):
        Moments = T.alloc_shared((2, _ROWS), "float32")
        Affine = T.alloc_shared((2, _ROWS), "float32")
        WarpSums = T.alloc_shared((2, _WARPS), "float32")
        CtaSums = T.alloc_shared((2, 2, _CTAS), "float32")
        values = T.alloc_local((turns * elements,), "float32")
        added = T.alloc_local((turns * elements,), dtype)
        weights = T.alloc_local((elements,), "float32")
        shifts = T.alloc_local((elements,), "float32")
        normal = T.alloc_local((width,), dtype)
        mean = T.alloc_local((1,), "float32")
        var = T.alloc_local((1,), "float32")
        start = T.alloc_local((2,), "float32")
        scanned = T.alloc_local((2,), "float32")
        lane = T.meta_var(tx % lanes)
        start[0] = Mean[layer, slot, group]
        start[1] = Var[layer, slot, group]
        for segment in T.serial(T.ceildiv(m, _SEGMENT)):
            buffer = T.meta_var(segment % 2)
            first = T.meta_var(segment * _SEGMENT + rank * _ROWS)
            for n in T.unroll(turns):
                # Past the end, the last step again.
                row = T.meta_var(T.min(first + n * at_once + tx // lanes, m - 1))
                for i in T.unroll(share.rounds):
                    if share.first(i, lane) < size:
                        column = T.meta_var(group * size + share.first(i, lane))
                        fetch(values, added, n * elements + i * width, row, column)
            for n in T.unroll(turns):
                row = T.meta_var(first + n * at_once + tx // lanes)
                for i in T.unroll(share.rounds):
                    if share.first(i, lane) < size:
                        column = T.meta_var(group * size + share.first(i, lane))
                        settle(values, added, n * elements + i * width, row, column, row < m)
                share.moments(values, n * elements, mean, var, lane)
                if lane == 0:
                    Moments[0, n * at_once + tx // lanes] = mean[0]
                    Moments[1, n * at_once + tx // lanes] = var[0]
            T.tvm_storage_sync("shared")
            scanned[0] = f32(1.0 - betas[0]) * Moments[0, tx]
            scanned[1] = f32(1.0 - betas[1]) * Moments[1, tx]
            scan(0, scanned, WarpSums, tx)
            scan(1, scanned, WarpSums, tx)
            T.tvm_storage_sync("shared")
            tell(0, WarpSums, CtaSums, buffer, rank, tx)
            tell(1, WarpSums, CtaSums, buffer, rank, tx)
            T.cuda.cluster_sync()
            before(0, scanned, WarpSums, CtaSums, buffer, rank, tx)
            before(1, scanned, WarpSums, CtaSums, buffer, rank, tx)
            steps = T.meta_var(rank * _ROWS + tx + 1)
            average: T.float32 = start[0] + (scanned[0] - forgotten(logs[0], steps) * start[0])
            variance: T.float32 = start[1] + (scanned[1] - forgotten(logs[1], steps) * start[1])
            steps_counted = T.meta_var(count + first + tx + 1)
            corrected = T.meta_var(variance / forgotten(logs[1], steps_counted))
            Affine[0, tx] = average / forgotten(logs[0], steps_counted)
            Affine[1, tx] = T.rsqrt(corrected + f32(eps))
            if first + tx == m - 1:
                Mean[layer, slot, group] = average
                Var[layer, slot, group] = variance
            whole(0, start, CtaSums, buffer)
            whole(1, start, CtaSums, buffer)
            for i in T.unroll(share.rounds):
                if share.first(i, lane) < size:
                    column = T.meta_var(group * size + share.first(i, lane))
                    floats.load(weights, i * width, W, column)
                    floats.load(shifts, i * width, B, column)
            T.tvm_storage_sync("shared")
            for n in T.unroll(turns):
                row = T.meta_var(first + n * at_once + tx // lanes)
                if row < m:
                    centre: T.float32 = Affine[0, n * at_once + tx // lanes]
                    scale: T.float32 = Affine[1, n * at_once + tx // lanes]
                    for i in T.unroll(share.rounds):
                        if share.first(i, lane) < size:
                            column = T.meta_var(group * size + share.first(i, lane))
                            for j in T.unroll(width):
                                k = T.meta_var(i * width + j)
                                value = T.meta_var((values[n * elements + k] - centre) * scale)
                                normal[j] = T.Cast(dtype, value * weights[k] + shifts[k])
                            typed.store_row(Y, row, column, normal, 0)
            T.tvm_storage_sync("shared")

    @T.prim_func(private=True)
    def timenorm(
        x: T.handle,
        weight: T.handle,
        bias: T.handle,
        prior_count: T.handle,
        slots: T.handle,
        position: T.handle,
        mean: T.handle,
        var: T.handle,
        layer: T.int64,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (m, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        PriorCount = T.match_buffer(prior_count, (1,), "int32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        Y = T.match_buffer(y, (m, dim), dtype)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 2})
        rank = T.cta_id_in_cluster([_CTAS])
        cta = T.cta_id([_CTAS * groups])
        tx = T.thread_id([_ROWS])
        slot: T.int32 = Slots[0]
        count: T.int32 = PriorCount[0] + Position[slot]

        @T.inline
        def fetch(Values, Added, at, row, column):
            floats.load_row(Values, at, X, row, column)

        @T.inline
        def settle(Values, Added, at, row, column, exists):
            pass

        body(
            fetch, settle, m, T.truncdiv(cta, _CTAS), rank, tx, W, B, count, Mean, Var, layer,
            slot, Y,
        )  # fmt: skip

    @T.prim_func(private=True)
    def timenorm_residual(
        x: T.handle,
        delta: T.handle,
        weight: T.handle,
        bias: T.handle,
        prior_count: T.handle,
        slots: T.handle,
        position: T.handle,
        mean: T.handle,
        var: T.handle,
        layer: T.int64,
        x_new: T.handle,
        y: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (m, dim), "float32")
        Delta = T.match_buffer(delta, (m, dim), dtype)
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        PriorCount = T.match_buffer(prior_count, (1,), "int32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        XNew = T.match_buffer(x_new, (m, dim), "float32")
        Y = T.match_buffer(y, (m, dim), dtype)
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 2})
        rank = T.cta_id_in_cluster([_CTAS])
        cta = T.cta_id([_CTAS * groups])
        tx = T.thread_id([_ROWS])
        slot: T.int32 = Slots[0]
        count: T.int32 = PriorCount[0] + Position[slot]

        @T.inline
        def fetch(Values, Added, at, row, column):
            floats.load_row(Values, at, X, row, column)
            typed.load_row(Added, at, Delta, row, column)

        @T.inline
        def settle(Values, Added, at, row, column, exists):
            for j in T.unroll(width):
                Values[at + j] = Values[at + j] + T.Cast("float32", Added[at + j])
            if exists:
                floats.store_row(XNew, row, column, Values, at)

        body(
            fetch, settle, m, T.truncdiv(cta, _CTAS), rank, tx, W, B, count, Mean, Var, layer,
            slot, Y,
        )  # fmt: skip

    return timenorm_residual if residual else timenorm
