"""One decode step of B sequences: timestep decay norm and the complex EMA of its output.

A CTA takes one group of features and some of the sequences: the norm's averages and the EMA's
state of these features are then nobody else's. A row whose slot is -1 is idle: it counts slot 0's
steps, starts from zeros and leaves every state alone.
"""

from __future__ import annotations

import functools
import math

from tvm.script import tirx as T

from ..timestep_norm import stepped
from ..vector_math import f32, total
from .dependent_launch import DependentLaunch
from .reduce import WARP, by_warps, shuffle, warp_reduce
from .timestep_norm import GroupMoments, forgotten
from .unit import GpuUnit
from .vectors import Vectors, vector_width

_OWN_MODES = 4  # of a thread, at least, where a channel has as many: accesses of 16 bytes
_CTAS = 1024  # that a large batch is shared out to, rather than more


class _Step:
    """The norm of one row's group by one warp: the inlines of both kernels."""

    def __init__(self, dim: int, groups: int, betas: tuple[float, float], eps: float):
        size = dim // groups
        share = GroupMoments(size, 1)
        lanes, width = share.lanes, share.width
        floats = Vectors(width, "float32")
        logs = [math.log(beta) for beta in betas]

        @T.inline
        def prepare(
            PriorCount, Slots, Position, StateMean, StateVar, index, row, group, lane, Before,
            Known, at,
        ):  # fmt: skip
            """What needs no x: lane 0 is for the mean, lane 1 for the variance."""
            Before[at] = f32(0.0)
            if Slots[row] >= 0:
                if lane == 0:
                    Before[at] = StateMean[index, Slots[row], group]
                if lane == 1:
                    Before[at] = StateVar[index, Slots[row], group]
            log_beta = T.meta_var(T.Select(lane == 0, f32(logs[0]), f32(logs[1])))
            steps = T.meta_var(PriorCount[0] + Position[T.max(Slots[row], 0)] + 1)
            Known[at] = forgotten(log_beta, steps)

        @T.inline
        def averages(
            X, Slots, StateMean, StateVar, index, row, exists, group, lane, Before, Known, at,
            Result,
        ):  # fmt: skip
            """The state one step on if the row ``exists``; Result[0] is the centre in lane 0 and
            the scale in lane 1."""
            values = T.alloc_local((share.elements,), "float32")
            mean = T.alloc_local((1,), "float32")
            var = T.alloc_local((1,), "float32")
            for i in T.unroll(share.rounds):
                if share.first(i, lane % lanes) < size:
                    floats.load_row(
                        values, i * width, X, row, group * size + share.first(i, lane % lanes)
                    )
            share.moments(values, 0, mean, var, lane % lanes)
            gain = T.meta_var(T.Select(lane == 0, f32(1.0 - betas[0]), f32(1.0 - betas[1])))
            after: T.float32 = stepped(gain, Before[at], T.Select(lane == 0, mean[0], var[0]))
            if exists and Slots[row] >= 0:
                if lane == 0:
                    StateMean[index, Slots[row], group] = after
                if lane == 1:
                    StateVar[index, Slots[row], group] = after
            Result[0] = after / Known[at]
            if lane == 1:
                Result[0] = T.rsqrt(Result[0] + f32(eps))

        self.prepare = prepare
        self.averages = averages


@functools.cache
def timenorm_step(
    dim: int,
    groups: int,
    betas: tuple[float, float],
    eps: float,
    norms: int,
    batch: int,
    dtype: str,
    unit: GpuUnit,
):
    """y [B, D] = the norm of x [B, D] float32; state mean, var [layers+1, slots, G].

    A warp for each row and group. On dependent launches see ``DependentLaunch``; states and
    positions must not have been written since the last plain one.
    """
    size = dim // groups
    launch = DependentLaunch(unit.dependent_launch)
    step = _Step(dim, groups, betas, eps)
    width = vector_width(dtype, size)
    pieces = size // width
    floats, elements = Vectors(width, "float32"), Vectors(width, dtype)

    @T.prim_func(private=True)
    def timenorm_step(
        x: T.handle,
        weight: T.handle,
        bias: T.handle,
        prior_count: T.handle,
        slots: T.handle,
        position: T.handle,
        mean: T.handle,
        var: T.handle,
        index: T.int64,
        y: T.handle,
    ):
        T.func_attr(launch.attributes)
        num_slots = T.int64()
        X = T.match_buffer(x, (batch, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        PriorCount = T.match_buffer(prior_count, (1,), "int32")
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        StateMean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        StateVar = T.match_buffer(var, (norms, num_slots, groups), "float32")
        Y = T.match_buffer(y, (batch, dim), dtype)
        T.device_entry()
        group, row = T.cta_id([groups, batch])
        lane = T.thread_id([WARP])
        before = T.alloc_local((1,), "float32")
        known = T.alloc_local((1,), "float32")
        result = T.alloc_local((1,), "float32")
        values = T.alloc_local((width,), "float32")
        weights = T.alloc_local((width,), "float32")
        shifts = T.alloc_local((width,), "float32")
        normal = T.alloc_local((width,), dtype)
        step.prepare(
            PriorCount, Slots, Position, StateMean, StateVar, index, row, group, lane, before,
            known, 0,
        )  # fmt: skip
        launch.wait()
        step.averages(
            X, Slots, StateMean, StateVar, index, row, True, group, lane, before, known, 0, result
        )
        centre: T.float32 = shuffle(result[0], 0)
        scale: T.float32 = shuffle(result[0], 1)
        for i in T.serial(T.ceildiv(pieces, WARP)):
            if i * WARP + lane < pieces:
                column = T.meta_var(group * size + (i * WARP + lane) * width)
                floats.load_row(values, 0, X, row, column)
                floats.load(weights, 0, W, column)
                floats.load(shifts, 0, B, column)
                for j in T.unroll(width):
                    normal[j] = T.Cast(dtype, (values[j] - centre) * scale * weights[j] + shifts[j])
                elements.store_row(Y, row, column, normal, 0)

    return timenorm_step


@functools.cache
def timenorm_cema_step(
    dim: int,
    groups: int,
    modes: int,
    betas: tuple[float, float],
    eps: float,
    norms: int,
    layers: int,
    batch: int,
    dtype: str,
    unit: GpuUnit,
):
    """o [B, D] = the norm of x [B, D] float32; y [B, D] float32 = the EMA of o.

    p [D, N], q and gamma [D, N, 2]; state mean, var [layers+1, slots, G] at ``index``, h [layers,
    slots, D, N, 2] at ``layer``. The modes of a channel go across adjacent lanes. On
    dependent launches see ``DependentLaunch``; states and positions must not have been written
    since the last plain one.
    """
    size = dim // groups
    launch = DependentLaunch(unit.dependent_launch)
    step = _Step(dim, groups, betas, eps)
    # Lanes of a channel: a power of two that leaves each of them ``_OWN_MODES`` modes or more.
    lanes = max(
        n for n in (1, 2, 4, 8, 16, 32) if modes % n == 0 and n <= max(1, modes // _OWN_MODES)
    )
    own = modes // lanes
    threads = unit.cta(-(-size * lanes // WARP) * WARP)
    channels = threads // lanes  # at a time
    turns = -(-size // channels)
    rows = max(n for n in range(1, max(1, batch * groups // _CTAS) + 1) if batch % n == 0)
    reduce = warp_reduce(total, lanes)
    warps = threads // WARP
    norm_turns = -(-rows // warps)
    reals, complexes = Vectors(own, "float32"), Vectors(2 * own, "float32")

    @T.prim_func(private=True)
    def timenorm_cema_step(
        x: T.handle,
        weight: T.handle,
        bias: T.handle,
        prior_count: T.handle,
        p: T.handle,
        q: T.handle,
        gamma: T.handle,
        slots: T.handle,
        position: T.handle,
        mean: T.handle,
        var: T.handle,
        h: T.handle,
        index: T.int64,
        layer: T.int64,
        o: T.handle,
        y: T.handle,
    ):
        T.func_attr(launch.attributes)
        num_slots = T.int64()
        X = T.match_buffer(x, (batch, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        PriorCount = T.match_buffer(prior_count, (1,), "int32")
        P = T.match_buffer(p, (dim, modes), "float32")
        Q = T.match_buffer(q, (dim, modes, 2), "float32")
        Gamma = T.match_buffer(gamma, (dim, modes, 2), "float32")
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        StateMean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        StateVar = T.match_buffer(var, (norms, num_slots, groups), "float32")
        H = T.match_buffer(h, (layers, num_slots, dim, modes, 2), "float32")
        Normal = T.match_buffer(o, (batch, dim), dtype)
        Y = T.match_buffer(y, (batch, dim), "float32")
        T.device_entry()
        Ps = T.decl_buffer((dim * modes,), "float32", data=P.data)
        Qs = T.decl_buffer((2 * dim * modes,), "float32", data=Q.data)
        Gammas = T.decl_buffer((2 * dim * modes,), "float32", data=Gamma.data)
        States = T.decl_buffer((layers * num_slots, 2 * dim * modes), "float32", data=H.data)
        group, part = T.cta_id([groups, batch // rows])
        tx = T.thread_id([threads])
        Centre = T.alloc_shared((rows,), "float32")
        Scale = T.alloc_shared((rows,), "float32")
        before = T.alloc_local((norm_turns,), "float32")
        known = T.alloc_local((norm_turns,), "float32")
        result = T.alloc_local((1,), "float32")
        ps = T.alloc_local((own,), "float32")
        qs = T.alloc_local((2 * own,), "float32")
        gammas = T.alloc_local((2 * own,), "float32")
        hs = T.alloc_local((rows * 2 * own,), "float32")
        xs = T.alloc_local((rows,), "float32")
        affine = T.alloc_local((2,), "float32")
        emitted = T.alloc_local((1,), "float32")

        @T.inline
        def fetch(channel):
            """All that the channel needs but x."""
            first = T.meta_var(channel * modes + tx % lanes * own)
            affine[0] = W[channel]
            affine[1] = B[channel]
            reals.load(ps, 0, Ps, first)
            complexes.load(qs, 0, Qs, 2 * first)
            complexes.load(gammas, 0, Gammas, 2 * first)
            for r in T.unroll(rows):
                slot = T.meta_var(Slots[part * rows + r])
                if slot >= 0:
                    complexes.load_row(hs, r * 2 * own, States, layer * num_slots + slot, 2 * first)
                else:
                    for j in T.unroll(2 * own):
                        hs[r * 2 * own + j] = f32(0.0)

        @T.inline
        def read(channel):
            for r in T.unroll(rows):
                xs[r] = X[part * rows + r, channel]

        @T.inline
        def advance(channel, exists):
            for r in T.unroll(rows):
                row = T.meta_var(part * rows + r)
                normal: T.float32 = (xs[r] - Centre[r]) * Scale[r] * affine[0] + affine[1]
                rounded = T.meta_var(T.Cast(dtype, normal))
                value: T.float32 = T.Cast("float32", rounded)
                emitted[0] = f32(0.0)
                for k in T.unroll(own):
                    re, im = T.meta_var(2 * k), T.meta_var(2 * k + 1)
                    at = T.meta_var(r * 2 * own)
                    turned: T.float32 = qs[re] * hs[at + re] + (
                        ps[k] * value - qs[im] * hs[at + im]
                    )
                    hs[at + im] = qs[re] * hs[at + im] + qs[im] * hs[at + re]
                    hs[at + re] = turned
                    emitted[0] = emitted[0] + gammas[re] * hs[at + re] - gammas[im] * hs[at + im]
                reduce(emitted)
                if exists:
                    if Slots[row] >= 0:
                        complexes.store_row(
                            States,
                            layer * num_slots + Slots[row],
                            2 * (channel * modes + tx % lanes * own),
                            hs,
                            r * 2 * own,
                        )
                    if tx % lanes == 0:
                        Normal[row, channel] = rounded
                        Y[row, channel] = value + emitted[0]

        # Past the group's end, its last channel again.
        first = T.meta_var(T.min(tx // lanes, size - 1))
        fetch(group * size + first)
        for i in T.unroll(norm_turns):
            r = T.meta_var(i * warps + tx // WARP)
            if r < rows:
                step.prepare(
                    PriorCount, Slots, Position, StateMean, StateVar, index, part * rows + r,
                    group, tx % WARP, before, known, i,
                )  # fmt: skip
        launch.wait()
        read(group * size + first)
        for i in T.unroll(norm_turns):
            r = T.meta_var(i * warps + tx // WARP)
            if by_warps(unit, r < rows):
                step.averages(
                    X, Slots, StateMean, StateVar, index, part * rows + T.min(r, rows - 1),
                    r < rows, group, tx % WARP, before, known, i, result,
                )  # fmt: skip
                if tx % WARP == 0 and r < rows:
                    Centre[r] = result[0]
                if tx % WARP == 1 and r < rows:
                    Scale[r] = result[0]
        T.tvm_storage_sync("shared")
        advance(group * size + first, tx // lanes < size)
        for i in T.serial(turns - 1):
            channel = T.meta_var((i + 1) * channels + tx // lanes)
            fetch(group * size + T.min(channel, size - 1))
            read(group * size + T.min(channel, size - 1))
            advance(group * size + T.min(channel, size - 1), channel < size)

    return timenorm_cema_step
