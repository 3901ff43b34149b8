"""Timestep decay norm (TDN) of m consecutive steps of one sequence, in two kernels.

The averages a_t = b a_(t-1) + (1-b) u_t, two for each group, are taken in blocks of ``BLOCK``
steps. ``stats`` takes the moments u of each step and what each block by itself adds to the
averages; ``apply`` sums what the blocks before its own added, scans its own with a lane for each
step, and normalises.

An average that goes on by n steps is written a + (added - (1 - b^n) a), with 1 - b^n from expm1:
float32 does not hold b^n well enough for averages that settle.
"""

from __future__ import annotations

import functools
import math

from tvm.script import tirx as T

from ..vector_math import f32, total
from .reduce import WARP, by_warps, shuffle_up, warp_reduce
from .unit import GpuUnit
from .vectors import Vectors, vector_width

BLOCK = WARP  # steps
_COLUMNS = 512  # features of a CTA, unless a single group has more
_GROUPS = 32  # of a CTA: 8 KiB of averages of a block
_THREADS = 256
_IN_FLIGHT = 8  # accesses that a thread starts before it waits for the first


class GroupMoments:
    """Which lanes hold which of a group's ``size`` features, and the inline for their moments.

    In each of ``rounds`` rounds a lane takes ``width`` adjacent features.
    """

    def __init__(self, size: int, rounds: int):
        self.width = width = vector_width("float32", size)
        pieces = size // width
        self.lanes = lanes = min(WARP, 1 << (-(-pieces // rounds) - 1).bit_length())
        self.rounds = rounds = -(-pieces // lanes)
        self.elements = rounds * width  # of one lane
        reduce = warp_reduce(total, lanes)

        @T.inline
        def moments(Values, at, Mean, Var, lane):
            """Mean[0] and the biased variance Var[0] of a group; this lane has Values[at:].

            The variance comes from the deviations, so that a large mean costs no digits.
            """
            Mean[0] = f32(0.0)
            for i in T.unroll(rounds):
                if (i * lanes + lane) * width < size:
                    for j in T.unroll(width):
                        Mean[0] = Mean[0] + Values[at + i * width + j]
            reduce(Mean)
            Mean[0] = Mean[0] / f32(size)
            Var[0] = f32(0.0)
            for i in T.unroll(rounds):
                if (i * lanes + lane) * width < size:
                    for j in T.unroll(width):
                        deviation = T.meta_var(Values[at + i * width + j] - Mean[0])
                        Var[0] = Var[0] + deviation * deviation
            reduce(Var)
            Var[0] = Var[0] / f32(size)

        self.moments = moments

    def first(self, i, lane):
        """The first feature of ``lane`` in round i; ``size`` or more if there is none."""
        return (i * self.lanes + lane) * self.width


def _groups_of_cta(dim: int, groups: int) -> int:
    """The most groups that divide all and have at most ``_COLUMNS`` features; at least one."""
    most = min(groups, _GROUPS, max(1, _COLUMNS * groups // dim))
    return next(n for n in range(most, 0, -1) if groups % n == 0)


def forgotten(log_beta, steps):
    """1 - beta^steps, in float32; log_beta is a number or an expression."""
    return f32(0.0) - T.call_pure_extern(
        "float32", "expm1f", T.Cast("float32", steps) * T.Cast("float32", log_beta)
    )


def _decay(beta: float, steps):
    """beta^steps as a weight, in float32."""
    return T.exp(T.Cast("float32", steps) * f32(math.log(beta)))


@functools.cache
def stats(
    dim: int,
    groups: int,
    betas: tuple[float, float],
    norms: int,
    unit: GpuUnit,
    delta: str | None = None,
    rescale: bool = False,
):
    """The moments of every step, and what every block of steps adds to the averages.

    x [m, D] float32; moments [2, G, m]: mean and biased variance of each step's group;
    added [2, G, ceil(m / BLOCK)]: for the first block the averages before it, from the state mean,
    var [layers+1, slots, G], then what the block before adds to them.

    With a dtype ``delta`` a residual comes first: x' [m, D] = x + delta [m, D], and with
    ``rescale`` x + alpha delta, alpha [D] float32; the moments are then those of x'.
    """
    size, part = dim // groups, _groups_of_cta(dim, groups)
    threads = unit.cta(_THREADS)
    warps = threads // WARP
    share = GroupMoments(size, 2)
    lanes, width, elements = share.lanes, share.width, share.elements
    at_once = threads // lanes  # groups of steps
    turns = -(-BLOCK * part // at_once)
    batch = min(turns, max(1, _IN_FLIGHT // share.rounds))
    floats, deltas = Vectors(width, "float32"), Vectors(width, delta or "float32")
    reduce = warp_reduce(total)

    @T.inline
    def block_sum(index, beta, Block, State, Added, slot, layer, first_group, m, k, tx):
        """What block k adds to the averages with decay beta; a warp for each group."""
        sums = T.alloc_local((1,), "float32")
        for i in T.serial(T.ceildiv(part, warps)):
            g = T.meta_var(i * warps + tx // WARP)
            if by_warps(unit, g < part):
                fading = T.meta_var(_decay(beta, BLOCK - 1 - tx % WARP))
                sums[0] = f32(1.0 - beta) * fading * Block[index, T.min(g, part - 1), tx % WARP]
                reduce(sums)
                if tx % WARP == 0 and g < part:
                    if k == 0:
                        Added[index, first_group + g, 0] = State[layer, slot, first_group + g]
                    if (k + 1) * BLOCK < m:
                        Added[index, first_group + g, k + 1] = sums[0]

    @T.inline
    def body(fetch, settle, m, first_group, k, tx, Slots, Mean, Var, layer, Moments, Added):
        Block = T.alloc_shared((2, part, BLOCK), "float32")
        values = T.alloc_local((batch * elements,), "float32")
        residual = T.alloc_local((batch * elements,), delta or "float32")
        mean = T.alloc_local((1,), "float32")
        var = T.alloc_local((1,), "float32")
        for turn in T.serial(T.ceildiv(turns, batch)):
            for n in T.unroll(batch):
                # Past the end, the last step or group again.
                item = T.meta_var((turn * batch + n) * at_once + tx // lanes)
                pair = T.meta_var(T.min(item, BLOCK * part - 1))
                row = T.meta_var(T.min(k * BLOCK + pair // part, m - 1))
                for i in T.unroll(share.rounds):
                    if share.first(i, tx % lanes) < size:
                        column = T.meta_var(
                            (first_group + pair % part) * size + share.first(i, tx % lanes)
                        )
                        fetch(values, residual, n * elements + i * width, row, column)
            for n in T.unroll(batch):
                item = T.meta_var((turn * batch + n) * at_once + tx // lanes)
                row = T.meta_var(k * BLOCK + item // part)
                for i in T.unroll(share.rounds):
                    if share.first(i, tx % lanes) < size:
                        column = T.meta_var(
                            (first_group + item % part) * size + share.first(i, tx % lanes)
                        )
                        exists = T.meta_var(T.And(item < BLOCK * part, row < m))
                        settle(values, residual, n * elements + i * width, row, column, exists)
                share.moments(values, n * elements, mean, var, tx % lanes)
                if item < BLOCK * part and tx % lanes == 0:
                    Block[0, item % part, item // part] = mean[0]
                    Block[1, item % part, item // part] = var[0]
        T.tvm_storage_sync("shared")
        for i in T.serial(T.ceildiv(2 * part, warps)):
            line = T.meta_var(i * warps + tx // WARP)
            step = T.meta_var(k * BLOCK + tx % WARP)
            if line < 2 * part and step < m:
                Moments[line // part, first_group + line % part, step] = Block[
                    line // part, line % part, tx % WARP
                ]
        block_sum(0, betas[0], Block, Mean, Added, Slots[0], layer, first_group, m, k, tx)
        block_sum(1, betas[1], Block, Var, Added, Slots[0], layer, first_group, m, k, tx)

    @T.prim_func(private=True)
    def timenorm_stats(
        x: T.handle,
        slots: T.handle,
        mean: T.handle,
        var: T.handle,
        layer: T.int64,
        moments: T.handle,
        added: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (m, dim), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        Moments = T.match_buffer(moments, (2, groups, m), "float32")
        Added = T.match_buffer(added, (2, groups, T.ceildiv(m, BLOCK)), "float32")
        T.device_entry()
        cta, k = T.cta_id([groups // part, T.ceildiv(m, BLOCK)])
        tx = T.thread_id([threads])

        @T.inline
        def fetch(Values, Residual, at, row, column):
            floats.load_row(Values, at, X, row, column)

        @T.inline
        def settle(Values, Residual, at, row, column, exists):
            pass

        body(fetch, settle, m, cta * part, k, tx, Slots, Mean, Var, layer, Moments, Added)

    @T.prim_func(private=True)
    def timenorm_stats_residual(
        x: T.handle,
        residual: T.handle,
        slots: T.handle,
        mean: T.handle,
        var: T.handle,
        layer: T.int64,
        x_new: T.handle,
        moments: T.handle,
        added: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (m, dim), "float32")
        Delta = T.match_buffer(residual, (m, dim), delta or "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        XNew = T.match_buffer(x_new, (m, dim), "float32")
        Moments = T.match_buffer(moments, (2, groups, m), "float32")
        Added = T.match_buffer(added, (2, groups, T.ceildiv(m, BLOCK)), "float32")
        T.device_entry()
        cta, k = T.cta_id([groups // part, T.ceildiv(m, BLOCK)])
        tx = T.thread_id([threads])

        @T.inline
        def fetch(Values, Residual, at, row, column):
            floats.load_row(Values, at, X, row, column)
            deltas.load_row(Residual, at, Delta, row, column)

        @T.inline
        def settle(Values, Residual, at, row, column, exists):
            for j in T.unroll(width):
                Values[at + j] = Values[at + j] + T.Cast("float32", Residual[at + j])
            if exists:
                floats.store_row(XNew, row, column, Values, at)

        body(fetch, settle, m, cta * part, k, tx, Slots, Mean, Var, layer, Moments, Added)

    @T.prim_func(private=True)
    def timenorm_stats_rescaled(
        x: T.handle,
        residual: T.handle,
        alpha: T.handle,
        slots: T.handle,
        mean: T.handle,
        var: T.handle,
        layer: T.int64,
        x_new: T.handle,
        moments: T.handle,
        added: T.handle,
    ):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (m, dim), "float32")
        Delta = T.match_buffer(residual, (m, dim), delta or "float32")
        Alpha = T.match_buffer(alpha, (dim,), "float32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        XNew = T.match_buffer(x_new, (m, dim), "float32")
        Moments = T.match_buffer(moments, (2, groups, m), "float32")
        Added = T.match_buffer(added, (2, groups, T.ceildiv(m, BLOCK)), "float32")
        T.device_entry()
        cta, k = T.cta_id([groups // part, T.ceildiv(m, BLOCK)])
        tx = T.thread_id([threads])

        @T.inline
        def fetch(Values, Residual, at, row, column):
            floats.load_row(Values, at, X, row, column)
            deltas.load_row(Residual, at, Delta, row, column)

        @T.inline
        def settle(Values, Residual, at, row, column, exists):
            for j in T.unroll(width):
                Values[at + j] = Values[at + j] + Alpha[column + j] * T.Cast(
                    "float32", Residual[at + j]
                )
            if exists:
                floats.store_row(XNew, row, column, Values, at)

        body(fetch, settle, m, cta * part, k, tx, Slots, Mean, Var, layer, Moments, Added)

    if delta is None:
        return timenorm_stats
    return timenorm_stats_rescaled if rescale else timenorm_stats_residual


@functools.cache
def apply(
    dim: int,
    groups: int,
    betas: tuple[float, float],
    eps: float,
    norms: int,
    dtype: str,
    unit: GpuUnit,
):
    """y [m, D] = (x - M) * rsqrt(V + eps) * weight + bias, M and V the corrected averages.

    x [m, D] float32, moments and added as ``stats`` leaves them. The slot's averages in the state
    mean, var [layers+1, slots, G] become those after the last step.
    """
    size, part = dim // groups, _groups_of_cta(dim, groups)
    threads = unit.cta(_THREADS)
    warps = threads // WARP
    width = vector_width(dtype, size)
    pieces = part * size // width  # of a row of the CTA's groups
    turns = -(-BLOCK * pieces // threads)
    batch = min(turns, max(1, _IN_FLIGHT * vector_width("float32") // width))
    floats, elements = Vectors(width, "float32"), Vectors(width, dtype)
    reduce = warp_reduce(total)

    @T.inline
    def averages(
        index, beta, finish, Moments, Added, State, Result, slot, layer, count, first_group, m, k,
        tx,
    ):  # fmt: skip
        """Result[g, t] from the corrected average after each step t of block k, with decay beta.

        A warp for each group, a lane for each step.
        """
        carried = T.alloc_local((1,), "float32")
        scanned = T.alloc_local((1,), "float32")
        lane = T.meta_var(tx % WARP)
        step = T.meta_var(k * BLOCK + lane)
        for i in T.serial(T.ceildiv(part, warps)):
            g = T.meta_var(i * warps + tx // WARP)
            if by_warps(unit, g < part):
                group = T.meta_var(first_group + T.min(g, part - 1))
                start: T.float32 = Added[index, group, 0]
                carried[0] = f32(0.0)
                for j in T.serial(k // WARP + 1):
                    block = T.meta_var(j * WARP + lane)
                    if block > 0 and block <= k:
                        fading = T.meta_var(_decay(beta, (k - block) * BLOCK))
                        carried[0] = carried[0] + fading * Added[index, group, block]
                reduce(carried)
                scanned[0] = f32(1.0 - beta) * Moments[index, group, T.min(step, m - 1)]
                for n in T.unroll(WARP.bit_length() - 1):
                    before: T.float32 = shuffle_up(scanned[0], 1 << n)
                    if lane >= 1 << n:
                        scanned[0] = scanned[0] + _decay(beta, 1 << n) * before
                added: T.float32 = scanned[0] + _decay(beta, lane + 1) * carried[0]
                average: T.float32 = start + (added - forgotten(math.log(beta), step + 1) * start)
                if g < part:
                    Result[g, lane] = finish(average / forgotten(math.log(beta), count + step + 1))
                    if step == m - 1:
                        State[layer, slot, first_group + g] = average

    @T.prim_func(private=True)
    def timenorm_apply(
        x: T.handle,
        moments: T.handle,
        added: T.handle,
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
        Moments = T.match_buffer(moments, (2, groups, m), "float32")
        Added = T.match_buffer(added, (2, groups, T.ceildiv(m, BLOCK)), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        PriorCount = T.match_buffer(prior_count, (1,), "int32")
        Slots = T.match_buffer(slots, (1,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        Y = T.match_buffer(y, (m, dim), dtype)
        T.device_entry()
        cta, from_last = T.cta_id([groups // part, T.ceildiv(m, BLOCK)])
        tx = T.thread_id([threads])
        # The last rows were read last and are the likeliest to be in the cache still.
        k = T.meta_var(T.ceildiv(m, BLOCK) - 1 - from_last)
        Centre = T.alloc_shared((part, BLOCK), "float32")
        Scale = T.alloc_shared((part, BLOCK), "float32")
        values = T.alloc_local((batch * width,), "float32")
        weights = T.alloc_local((width,), "float32")
        shifts = T.alloc_local((width,), "float32")
        normal = T.alloc_local((width,), dtype)
        slot: T.int32 = Slots[0]
        count: T.int32 = PriorCount[0] + Position[slot]
        averages(
            0, betas[0], lambda mean: mean, Moments, Added, Mean, Centre, slot, layer, count,
            cta * part, m, k, tx,
        )  # fmt: skip
        averages(
            1, betas[1], lambda var: T.rsqrt(var + f32(eps)), Moments, Added, Var, Scale, slot,
            layer, count, cta * part, m, k, tx,
        )  # fmt: skip
        T.tvm_storage_sync("shared")
        for turn in T.serial(T.ceildiv(turns, batch)):
            for n in T.unroll(batch):
                # Past the end, the last step again.
                item = T.meta_var((turn * batch + n) * threads + tx)
                row = T.meta_var(T.min(k * BLOCK + item // pieces, m - 1))
                column = T.meta_var(cta * part * size + item % pieces * width)
                floats.load_row(values, n * width, X, row, column)
            for n in T.unroll(batch):
                item = T.meta_var((turn * batch + n) * threads + tx)
                row = T.meta_var(k * BLOCK + item // pieces)
                column = T.meta_var(cta * part * size + item % pieces * width)
                if item < BLOCK * pieces and row < m:
                    floats.load(weights, 0, W, column)
                    floats.load(shifts, 0, B, column)
                    centre: T.float32 = Centre[item % pieces * width // size, item // pieces]
                    scale: T.float32 = Scale[item % pieces * width // size, item // pieces]
                    for j in T.unroll(width):
                        value = T.meta_var((values[n * width + j] - centre) * scale)
                        normal[j] = T.Cast(dtype, value * weights[j] + shifts[j])
                    elements.store_row(Y, row, column, normal, 0)

    return timenorm_apply
