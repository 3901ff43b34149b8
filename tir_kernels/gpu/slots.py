"""Bookkeeping on state slots: positions, and copying, setting or clearing one slot."""

from __future__ import annotations

import functools

from tvm.script import tirx as T

from ..vector_math import f32
from .vectors import vector_width

_THREADS = 128


@functools.cache
def advance(batched: bool):
    """position[slots[0]] += m after a prefill of m tokens; ``batched``, += 1 in each of m slots.

    A slot of -1 is an idle row.
    """

    @T.prim_func(private=True)
    def advance(tokens: T.handle, slots: T.handle, position: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        listed = T.int32()
        num_slots = T.int64()
        T.match_buffer(tokens, (m,), "int32")
        Slots = T.match_buffer(slots, (listed,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        T.device_entry()
        b = T.cta_id([listed])
        tx = T.thread_id([32])
        if tx == 0 and Slots[b] >= 0:
            Position[Slots[b]] = Position[Slots[b]] + T.Select(batched, 1, m)

    return advance


def _vectors(size: int, dtype: str) -> tuple[int, int]:
    """Elements of one access, and CTAs for ``size`` elements."""
    width = vector_width(dtype, size)
    return width, -(-size // (width * _THREADS))


@functools.cache
def get_slot(layers: int, size: int, dtype: str):
    """values [layers, size] = state [layers, slots, size] at one slot."""
    width, ctas = _vectors(size, dtype)

    @T.prim_func(private=True)
    def get_slot(slots: T.handle, state: T.handle, values: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        State = T.match_buffer(state, (layers, num_slots, size), dtype)
        Values = T.match_buffer(values, (layers, size), dtype)
        T.device_entry()
        part, layer = T.cta_id([ctas, layers])
        tx = T.thread_id([_THREADS])
        first = T.meta_var((T.Cast("int64", part) * _THREADS + tx) * width)
        if first < size:
            for j in T.vectorized(width):
                Values[layer, first + j] = State[layer, Slots[0], first + j]

    return get_slot


@functools.cache
def set_slot(layers: int, size: int, dtype: str):
    """state [layers, slots, size] at one slot = values [layers, size], in place."""
    width, ctas = _vectors(size, dtype)

    @T.prim_func(private=True)
    def set_slot(slots: T.handle, values: T.handle, state: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        Values = T.match_buffer(values, (layers, size), dtype)
        State = T.match_buffer(state, (layers, num_slots, size), dtype)
        T.device_entry()
        part, layer = T.cta_id([ctas, layers])
        tx = T.thread_id([_THREADS])
        first = T.meta_var((T.Cast("int64", part) * _THREADS + tx) * width)
        if first < size:
            for j in T.vectorized(width):
                State[layer, Slots[0], first + j] = Values[layer, first + j]

    return set_slot


@functools.cache
def fill_slot(layers: int, size: int, dtype: str, value: float):
    """state [layers, slots, size] at one slot = ``value``, in place."""
    width, ctas = _vectors(size, dtype)

    @T.prim_func(private=True)
    def fill_slot(slots: T.handle, state: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        State = T.match_buffer(state, (layers, num_slots, size), dtype)
        T.device_entry()
        part, layer = T.cta_id([ctas, layers])
        tx = T.thread_id([_THREADS])
        first = T.meta_var((T.Cast("int64", part) * _THREADS + tx) * width)
        filling = T.alloc_local((width,), dtype)
        for j in T.unroll(width):
            filling[j] = T.Cast(dtype, f32(value))
        if first < size:
            for j in T.vectorized(width):
                State[layer, Slots[0], first + j] = filling[j]

    return fill_slot


@functools.cache
def fill_slot_norm(norms: int, groups: int):
    """mean and var [layers+1, slots, G] of one norm at one slot = its prior moments [G]."""

    @T.prim_func(private=True)
    def fill_slot_norm(
        slots: T.handle,
        prior_mean: T.handle,
        prior_var: T.handle,
        mean: T.handle,
        var: T.handle,
        layer: T.int64,
    ):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        PriorMean = T.match_buffer(prior_mean, (groups,), "float32")
        PriorVar = T.match_buffer(prior_var, (groups,), "float32")
        Mean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        Var = T.match_buffer(var, (norms, num_slots, groups), "float32")
        T.device_entry()
        part = T.cta_id([-(-groups // _THREADS)])
        tx = T.thread_id([_THREADS])
        group = T.meta_var(part * _THREADS + tx)
        if group < groups:
            Mean[layer, Slots[0], group] = PriorMean[group]
            Var[layer, Slots[0], group] = PriorVar[group]

    return fill_slot_norm
