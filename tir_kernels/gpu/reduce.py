"""Reductions over the lanes of a warp and over the threads of a CTA; every thread gets the result.

``fold`` combines a list of scalars: ``vector_math.total`` or ``vector_math.largest``.
"""

from __future__ import annotations

from tvm.script import tirx as T

from .unit import GpuUnit

WARP = 32


def by_warps(unit: GpuUnit, condition):
    """The condition on which a warp does what exchanges values between its lanes.

    Where a unit's exchanges take all threads of the CTA, all warps do it, and ``condition`` must
    guard what they write.
    """
    return condition if unit.ptx else True


def shuffle_xor(value, mask):
    """The value held by the lane whose number differs from this lane's in the bits of ``mask``."""
    return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, mask, WARP, WARP)


def shuffle_up(value, distance):
    """The value held by the lane ``distance`` below this one; this lane's own if there is none."""
    return T.tvm_warp_shuffle_up(T.uint32(0xFFFFFFFF), value, distance, WARP, WARP)


def shuffle(value, lane):
    """The value held by that lane of the warp."""
    return T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), value, lane, WARP, WARP)


def warp_reduce(fold, lanes: int = WARP, items: int = 1):
    """An inline (V): V[i] for i < ``items`` folded over each run of ``lanes`` lanes.

    V is a local buffer [items]; ``lanes`` is a power of two. All lanes of the warp must take part.
    """
    steps = lanes.bit_length() - 1

    @T.inline
    def reduce(V):
        for step in T.unroll(steps):
            for i in T.unroll(items):
                V[i] = fold([V[i], shuffle_xor(V[i], (lanes // 2) >> step)])

    return reduce


def warp_deal(items: int):
    """An inline (V, lane): items summed over the warp and dealt to its lanes.

    V is a local buffer of as many items, up to the next power of two, with zeros beyond. Lane l is
    left with the sum of item i * 32 + l in V[i]; fewer items than lanes are repeated. So n items
    take about n exchanges, not 5 n, and most of them between neighbours.
    """
    count = 1 << (items - 1).bit_length()

    def step(bit: int, rest):
        held = max(1, count >> bit + 1)  # after this step

        @T.inline
        def halve(V, lane):
            for i in T.unroll(held):
                upper = T.meta_var((lane >> bit) % 2 == 1)
                given = T.meta_var(shuffle_xor(T.Select(upper, V[2 * i], V[2 * i + 1]), 1 << bit))
                V[i] = T.Select(upper, V[2 * i + 1], V[2 * i]) + given
            rest(V, lane)

        @T.inline
        def add(V, lane):
            V[0] = V[0] + shuffle_xor(V[0], 1 << bit)
            rest(V, lane)

        return halve if count >> bit > 1 else add

    @T.inline
    def nothing(V, lane):
        pass

    deal = nothing
    for bit in reversed(range(WARP.bit_length() - 1)):
        deal = step(bit, deal)
    return deal


def cta_reduce(fold, threads: int, items: int = 1):
    """An inline (V, Shared, tx): V[i] for i < ``items`` folded over all ``threads`` of the CTA.

    V is a local buffer [items], Shared a shared one [items, threads / 32], which must not be
    written again before the next barrier; ``threads`` is a multiple of 32.
    """
    warps = threads // WARP
    within_warp = warp_reduce(fold, WARP, items)

    @T.inline
    def reduce(V, Shared, tx):
        within_warp(V)
        if tx % WARP == 0:
            for i in T.unroll(items):
                Shared[i, tx // WARP] = V[i]
        T.tvm_storage_sync("shared")
        for i in T.unroll(items):
            V[i] = fold([Shared[i, warp] for warp in range(warps)])

    return reduce
