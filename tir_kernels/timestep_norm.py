"""Timestep decay norm (TDN): features normalised by decayed moments of their group over time.

Per group g the moments of step t alone are u_t = mean, s_t = biased variance of its D/G features;
m_t = b1 m_{t-1} + (1-b1) u_t and v_t likewise with b2 are the state, and
y_t = (x_t - m_t / (1-b1^c)) * rsqrt(v_t / (1-b2^c) + eps) * weight + bias with c steps counted.

1-b and 1-b^c are taken in double: in float32, 1 - 0.9999 is already off by 1.7e-4.
"""

from __future__ import annotations

import functools
import math

from tvm.script import tirx as T

from .group_moments import group_moments
from .vector_math import f32, rsqrt
from .vector_unit import VectorUnit


def bias_correction(beta: float, count):
    """1/(1 - beta^count), in double, rounded once to float32."""
    power = T.exp(T.Cast("float64", count) * T.float64(math.log(beta)))
    return T.Cast("float32", T.float64(1) / (T.float64(1) - power))


def stepped(gain, average, value):
    """The average one step on; gain is 1 - beta in float32.

    Stepping towards the new value keeps beta itself, which float32 cannot hold, out.
    """
    return average + gain * (value - average)


class _Moments:
    """The inlines that prefill and decode share, for one shape."""

    def __init__(self, dim: int, groups: int, betas: tuple[float, float], eps, unit: VectorUnit):
        size = dim // groups
        width = unit.fit(size)
        beta1, beta2 = betas
        gain1, gain2 = f32(1.0 - beta1), f32(1.0 - beta2)

        @T.inline
        def bias_corrections(Correction, count):
            Correction[0] = bias_correction(beta1, count)
            Correction[1] = bias_correction(beta2, count)

        @T.inline
        def advance(Correction, Mean, Var, row, state_mean, state_var, layer, slot, g):
            """The state one step on; Mean and Var become the corrected mean and 1/deviation."""
            state_mean[layer, slot, g] = stepped(gain1, state_mean[layer, slot, g], Mean[row, g])
            state_var[layer, slot, g] = stepped(gain2, state_var[layer, slot, g], Var[row, g])
            Mean[row, g] = state_mean[layer, slot, g] * Correction[0]
            Var[row, g] = rsqrt(state_var[layer, slot, g] * Correction[1] + f32(eps))

        @T.inline
        def apply(X, Mean, Scale, W, B, Y, row, moments_row, group):
            for i in T.serial(size // width):
                for j in T.vectorized(width):
                    Y[row, group * size + i * width + j] = (
                        X[row, group * size + i * width + j] - Mean[moments_row, group]
                    ) * Scale[moments_row, group] * W[group * size + i * width + j] + B[
                        group * size + i * width + j
                    ]

        self.of_step, self.bias_corrections = group_moments(size, unit), bias_corrections
        self.advance, self.apply = advance, apply


@functools.cache
def timestep_norm_prefill(
    dim: int,
    groups: int,
    betas: tuple[float, float],
    eps: float,
    max_rows: int,
    norms: int,
    unit: VectorUnit,
):
    """m consecutive steps of one sequence: x, y [m, D]; state mean, var [layers+1, slots, G].

    The moments of each step and the normalisation run in parallel over time; only the two
    recurrences, G wide, are serial.
    """
    moments = _Moments(dim, groups, betas, eps, unit)
    width = unit.fit(groups)

    @T.prim_func(s_tir=True, private=True)
    def timenorm_prefill(
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
        StateMean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        StateVar = T.match_buffer(var, (norms, num_slots, groups), "float32")
        Y = T.match_buffer(y, (m, dim), "float32")
        Mean = T.alloc_buffer((max_rows, groups), "float32")
        Var = T.alloc_buffer((max_rows, groups), "float32")
        for t in T.parallel(m):
            for group in T.serial(groups):
                moments.of_step(X, t, group, Mean, Var, t, group)
        for t in T.serial(m):
            correction = T.alloc_buffer((2,), "float32")
            moments.bias_corrections(correction, PriorCount[0] + Position[Slots[0]] + t + 1)
            for go in T.serial(groups // width):
                for gi in T.vectorized(width):
                    moments.advance(
                        correction,
                        Mean,
                        Var,
                        t,
                        StateMean,
                        StateVar,
                        layer,
                        Slots[0],
                        go * width + gi,
                    )
        for t in T.parallel(m):
            for group in T.serial(groups):
                moments.apply(X, Mean, Var, W, B, Y, t, t, group)

    return timenorm_prefill


@functools.cache
def timestep_norm_decode(
    dim: int,
    groups: int,
    betas: tuple[float, float],
    eps: float,
    norms: int,
    unit: VectorUnit,
):
    """One step of B sequences, each in its own slot: x, y [B, D]."""
    moments = _Moments(dim, groups, betas, eps, unit)

    @T.inline
    def step(X, W, B, count, Slots, StateMean, StateVar, layer, Y, b):
        correction = T.alloc_buffer((2,), "float32")
        mean = T.alloc_buffer((1, groups), "float32")
        var = T.alloc_buffer((1, groups), "float32")
        moments.bias_corrections(correction, count)
        for group in T.serial(groups):
            moments.of_step(X, b, group, mean, var, 0, group)
            moments.advance(correction, mean, var, 0, StateMean, StateVar, layer, Slots[b], group)
            moments.apply(X, mean, var, W, B, Y, b, 0, group)

    @T.prim_func(s_tir=True, private=True)
    def timenorm_decode(
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
        batch = T.int32()
        num_slots = T.int64()
        X = T.match_buffer(x, (batch, dim), "float32")
        W = T.match_buffer(weight, (dim,), "float32")
        B = T.match_buffer(bias, (dim,), "float32")
        PriorCount = T.match_buffer(prior_count, (1,), "int32")
        Slots = T.match_buffer(slots, (batch,), "int32")
        Position = T.match_buffer(position, (num_slots,), "int32")
        StateMean = T.match_buffer(mean, (norms, num_slots, groups), "float32")
        StateVar = T.match_buffer(var, (norms, num_slots, groups), "float32")
        Y = T.match_buffer(y, (batch, dim), "float32")
        if batch == 1:
            step(
                X,
                W,
                B,
                PriorCount[0] + Position[Slots[0]] + 1,
                Slots,
                StateMean,
                StateVar,
                layer,
                Y,
                0,
            )
        else:
            for b in T.parallel(batch):
                step(
                    X,
                    W,
                    B,
                    PriorCount[0] + Position[Slots[b]] + 1,
                    Slots,
                    StateMean,
                    StateVar,
                    layer,
                    Y,
                    b,
                )

    return timenorm_decode
