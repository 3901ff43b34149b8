"""Choosing the next token on the device, as ``runtime.sampling.Sampler`` does on the host.

One CTA for each row, every thread with consecutive entries of the vocabulary. Top-p
needs no sort: the smallest weight that stays is found bit by bit, from the sums of all weights at
or above a candidate. Sums are made in a fixed order, so that the choice is repeatable.
"""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32, largest, total
from .reduce import WARP, warp_reduce
from .unit import GpuUnit
from .vectors import vector_width

_MAX_THREADS = 1024
_UNROLLED = 64  # entries of a thread at most that are surely in registers
# Weights are 0 to 1: as integers, their bits come in the same order and end here.
_ONE_BITS = 0x3F800000
_MIN_TEMPERATURE = 1e-30


def _smallest(values):
    return -largest([-value for value in values])


def _reduce(fold, threads: int, nothing):
    """As ``cta_reduce``, for many warps: each folds the warps' results once more by itself."""
    warps = threads // WARP
    within_warp = warp_reduce(fold)

    @T.inline
    def reduce(V, Shared, tx):
        within_warp(V)
        if tx % WARP == 0:
            Shared[tx // WARP] = V[0]
        T.tvm_storage_sync("shared")
        V[0] = nothing
        if tx % WARP < warps:
            V[0] = Shared[tx % WARP]
        within_warp(V)

    return reduce


def _scan(threads: int):
    """An inline (V, Sums, tx): V[0] = the sum of V[0] over all threads before this one.

    Sums [threads / 32] in shared memory must not be written again before the next barrier.
    """
    warps = threads // WARP

    @T.inline
    def scan(V, Sums, tx):
        below = T.alloc_local((2,), "float32")
        below[0] = V[0]
        for step in T.unroll(WARP.bit_length() - 1):
            below[1] = T.tvm_warp_shuffle_up(T.uint32(0xFFFFFFFF), below[0], 1 << step, WARP, WARP)
            if tx % WARP >= 1 << step:
                below[0] = below[0] + below[1]
        if tx % WARP == WARP - 1:
            Sums[tx // WARP] = below[0]
        below[1] = T.tvm_warp_shuffle_up(T.uint32(0xFFFFFFFF), below[0], 1, WARP, WARP)
        T.tvm_storage_sync("shared")
        V[0] = total([T.Select(warp < tx // WARP, Sums[warp], f32(0.0)) for warp in range(warps)])
        if tx % WARP > 0:
            V[0] = V[0] + below[1]

    return scan


@functools.cache
def sample(batch: int, vocab: int, unit: GpuUnit):
    """tokens [B] in place, from logits [B, V] and sampling [B, 3].

    A row of ``sampling`` is temperature (0: the likeliest token, of equals the first), top_p, and a
    number in [0, 1) that points into the sum of the weights that top_p leaves, in index order.
    """
    threads = unit.cta(min(_MAX_THREADS, -(-vocab // (4 * WARP)) * WARP))
    width = vector_width("float32", vocab)
    # Entries of one thread.
    count = -(-vocab // (threads * width)) * width
    unrolled = count <= _UNROLLED
    over = T.unroll if unrolled else T.serial
    warps = threads // WARP
    highest = _reduce(largest, threads, T.min_value("float32"))
    first, last_of = _reduce(_smallest, threads, vocab), _reduce(largest, threads, 0)
    add, scan = _reduce(total, threads, f32(0.0)), _scan(threads)

    @T.inline
    def folded(fold, value, entry):
        """value[0] = the thread's entries(i), folded."""
        if unrolled:
            value[0] = fold([entry(i) for i in range(count)])
        else:
            value[0] = entry(0)
            for i in T.serial(count - 1):
                value[0] = fold([value[0], entry(i + 1)])

    @T.inline
    def load(Logits, W, b, tx):
        for i in over(count // width):
            if tx * count + i * width < vocab:
                for j in T.vectorized(width):
                    W[i * width + j] = Logits[b, tx * count + i * width + j]
            else:
                for j in T.unroll(width):
                    W[i * width + j] = T.min_value("float32")

    @T.inline
    def likeliest(W, best, chosen, Reduced, Chosen, tx):
        """best[0] = the largest entry, chosen[0] the first index that has it."""
        folded(largest, best, lambda i: W[i])
        highest(best, Reduced[0], tx)
        chosen[0] = vocab - 1
        for i in over(count):
            if W[i] == best[0]:
                chosen[0] = T.min(chosen[0], tx * count + i)
        first(chosen, Chosen[0], tx)

    @T.inline
    def halve(W, target, lowest, value, Shared, tx):
        """Entries at or above lowest[0] (as bits) hold the target, those above lowest[1] do not."""
        middle = T.truncdiv(lowest[0] + lowest[1], 2)
        limit: T.float32 = T.reinterpret("float32", middle)
        folded(total, value, lambda i: T.Select(W[i] >= limit, W[i], f32(0.0)))
        add(value, Shared, tx)
        if value[0] >= target:
            lowest[0] = middle
        else:
            lowest[1] = middle

    @T.inline
    def keep_nucleus(W, top_p, value, Reduced, Scanned, tx):
        """Entries that the largest, which hold top_p of the sum, do not include become 0."""
        lowest = T.alloc_local((2,), "int32")
        ties = T.alloc_local((1,), "float32")
        folded(total, value, lambda i: W[i])
        add(value, Reduced[1], tx)
        target: T.float32 = top_p * value[0]
        lowest[0] = 0
        lowest[1] = _ONE_BITS + 1
        for step in T.serial(_ONE_BITS.bit_length() // 2):
            halve(W, target, lowest, value, Reduced[0], tx)
            halve(W, target, lowest, value, Reduced[1], tx)
        limit: T.float32 = T.reinterpret("float32", lowest[0])
        folded(total, value, lambda i: T.Select(W[i] > limit, W[i], f32(0.0)))
        add(value, Reduced[0], tx)
        # Of entries equal to the limit the first are kept, as many as it takes.
        wanted: T.float32 = T.max(T.ceil((target - value[0]) / limit), f32(1.0))
        folded(total, ties, lambda i: T.Select(W[i] == limit, f32(1.0), f32(0.0)))
        scan(ties, Scanned, tx)
        for i in over(count):
            if W[i] == limit:
                ties[0] = ties[0] + f32(1.0)
                if ties[0] > wanted:
                    W[i] = f32(0.0)
            if W[i] < limit:
                W[i] = f32(0.0)

    @T.inline
    def draw(W, uniform, value, chosen, Reduced, Chosen, Scanned, tx):
        """chosen[0] = the first entry at which the running sum passes the point, or the last."""
        folded(total, value, lambda i: W[i])
        add(value, Reduced[1], tx)
        point: T.float32 = uniform * value[0]
        folded(total, value, lambda i: W[i])
        scan(value, Scanned, tx)
        chosen[0] = vocab
        last = T.alloc_local((1,), "int32")
        last[0] = 0
        for i in over(count):
            value[0] = value[0] + W[i]
            if W[i] > f32(0.0):
                last[0] = tx * count + i
                if value[0] > point:
                    chosen[0] = T.min(chosen[0], last[0])
        first(chosen, Chosen[0], tx)
        last_of(last, Chosen[1], tx)
        chosen[0] = T.min(chosen[0], last[0])

    @T.prim_func(private=True)
    def sample(logits: T.handle, sampling: T.handle, tokens: T.handle):
        T.func_attr({"tirx.noalias": True})
        Logits = T.match_buffer(logits, (batch, vocab), "float32")
        Sampling = T.match_buffer(sampling, (batch, 3), "float32")
        Tokens = T.match_buffer(tokens, (batch,), "int32")
        T.device_entry()
        b = T.cta_id([batch])
        tx = T.thread_id([threads])
        Reduced = [T.alloc_shared((warps,), "float32") for _ in range(2)]
        Chosen = [T.alloc_shared((warps,), "int32") for _ in range(2)]
        Scanned = T.alloc_shared((warps,), "float32")
        W = T.alloc_local((count,), "float32")
        value = T.alloc_local((1,), "float32")
        chosen = T.alloc_local((1,), "int32")
        load(Logits, W, b, tx)
        likeliest(W, value, chosen, Reduced, Chosen, tx)
        temperature: T.float32 = Sampling[b, 0]
        if temperature > f32(0.0):
            # A vanishing temperature must not have an infinite inverse: zero times that is NaN.
            inverse: T.float32 = f32(1.0) / T.max(temperature, f32(_MIN_TEMPERATURE))
            for i in over(count):
                W[i] = T.exp((W[i] - value[0]) * inverse)
            if Sampling[b, 1] < f32(1.0):
                keep_nucleus(W, Sampling[b, 1], value, Reduced, Scanned, tx)
            draw(W, Sampling[b, 2], value, chosen, Reduced, Chosen, Scanned, tx)
        if tx == 0:
            Tokens[b] = chosen[0]

    return sample
