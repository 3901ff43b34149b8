"""Bookkeeping on state slots: positions, and copying, setting or clearing one slot."""

from __future__ import annotations

import functools

from tvm.script import tirx as T


@functools.cache
def advance(batched: bool):
    """position[slots[0]] += m after a prefill of m tokens; ``batched``, += 1 in each of m slots."""

    @T.prim_func(s_tir=True, private=True)
    def advance(tokens: T.handle, slots: T.handle, position: T.handle):
        T.func_attr({"tirx.noalias": True})
        m = T.int32()
        listed = T.int32()
        num_slots = T.int64()
        T.match_buffer(tokens, (m,), "int32")
        Slots = T.match_buffer(slots, (listed,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        for b in T.serial(listed):
            Position[Slots[b]] = Position[Slots[b]] + T.Select(batched, 1, m)

    return advance


@functools.cache
def get_slot(layers: int, size: int, dtype: str):
    """values [layers, size] = state [layers, slots, size] at one slot."""

    @T.prim_func(s_tir=True, private=True)
    def get_slot(slots: T.handle, state: T.handle, values: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        State = T.match_buffer(state, (layers, num_slots, size), dtype)
        Values = T.match_buffer(values, (layers, size), dtype)
        for layer in T.serial(layers):
            for i in T.serial(size):
                Values[layer, i] = State[layer, Slots[0], i]

    return get_slot


@functools.cache
def set_slot(layers: int, size: int, dtype: str):
    """state [layers, slots, size] at one slot = values [layers, size], in place."""

    @T.prim_func(s_tir=True, private=True)
    def set_slot(slots: T.handle, values: T.handle, state: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        Values = T.match_buffer(values, (layers, size), dtype)
        State = T.match_buffer(state, (layers, num_slots, size), dtype)
        for layer in T.serial(layers):
            for i in T.serial(size):
                State[layer, Slots[0], i] = Values[layer, i]

    return set_slot


@functools.cache
def fill_slot(layers: int, size: int, dtype: str, value: float):
    """state [layers, slots, size] at one slot = ``value``, in place."""

    @T.prim_func(s_tir=True, private=True)
    def fill_slot(slots: T.handle, state: T.handle):
        T.func_attr({"tirx.noalias": True})
        num_slots = T.int64()
        Slots = T.match_buffer(slots, (1,), "int32")
        State = T.match_buffer(state, (layers, num_slots, size), dtype)
        for layer in T.serial(layers):
            for i in T.serial(size):
                State[layer, Slots[0], i] = T.Cast(dtype, T.float32(value))

    return fill_slot


@functools.cache
def fill_slot_norm(norms: int, groups: int):
    """mean and var [layers+1, slots, G] of one norm at one slot = its prior moments [G]."""

    @T.prim_func(s_tir=True, private=True)
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
        for g in T.serial(groups):
            Mean[layer, Slots[0], g] = PriorMean[g]
            Var[layer, Slots[0], g] = PriorVar[g]

    return fill_slot_norm
