"""Rotary position embedding over interleaved pairs of features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gecko_mlc.reference.ops.precision import state_dtype


def rotation(
    position: int, length: int, head_dim: int, base: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The rotations `exp(i t base^(-2j / head_dim))` of `length` positions t from `position` on.

    Angles are taken in float64: a float32 angle is off by a tenth of a radian at position four
    million. Returns [length, head_dim / 2] complex, of the width that goes with `dtype`.
    """
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device)
    frequency = torch.exp(pair * (-math.log(base) / head_dim))
    time = torch.arange(position, position + length, dtype=torch.float64, device=device)
    angle = torch.outer(time, frequency)
    return torch.polar(torch.ones_like(angle), angle).to(state_dtype(dtype).to_complex())


def rotary(x: Tensor, rotation: Tensor, heads: int) -> Tensor:
    """Rotate the first `heads` heads of `x`, pairs (2j, 2j + 1) as complex numbers.

    x [B, T, ..., H, zh]; rotation [T, zh / 2] complex. Returns x's shape and dtype.
    """
    if heads == 0:
        return x
    turn = rotation.view(rotation.shape[0], *[1] * (x.ndim - 3), rotation.shape[1])
    pairs = x[..., :heads, :].to(rotation.dtype.to_real()).unflatten(-1, (-1, 2))
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2).to(x.dtype)
    return turned if heads == x.shape[-2] else torch.cat([turned, x[..., heads:, :]], -2)
