"""Complex exponential moving average (CEMA), in blocks of time.

Within a block the recurrence is a short causal convolution, written as a matrix product with a
Toeplitz matrix per feature; between blocks only the state h is carried. No tensor of T x D x N
exists at any length.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Steps per block: the block's matrices cost D x BLOCK x (BLOCK + 4N) numbers, the products as
# many multiplications for every BLOCK steps.
BLOCK = 32


def cema_coefficients(
    alpha: Tensor, delta: Tensor, theta: Tensor, gamma: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """p [D, N] real, q and gamma [D, N] complex, from the parameters.

    alpha, delta [D, N], theta [D], gamma [D, N, 2]. Folded in float64 and rounded once to `dtype`
    (float32 or float64) and the complex dtype that goes with it.
    """
    modes = alpha.shape[1]
    p = torch.sigmoid(alpha.double())
    phase = torch.sigmoid(theta.double()) * (2.0 * math.pi / modes)  # [D]
    wave = torch.arange(1, modes + 1, dtype=torch.float64, device=alpha.device)
    q = torch.polar(1.0 - p * torch.sigmoid(delta.double()), torch.outer(phase, wave))
    weight = torch.view_as_complex(gamma.double())
    return p.to(dtype), q.to(dtype.to_complex()), weight.to(dtype.to_complex())


def complex_ema(x: Tensor, h: Tensor, p: Tensor, q: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """`h_t = q h_(t-1) + p x_t; y_t = Re(sum_n gamma_n h_t,n) + x_t` for T steps.

    x [B, T, D]; h [B, D, N] complex, the state before the first step; p, q, gamma as
    `cema_coefficients` gives them. Returns y [B, T, D] in x's dtype and the new h.
    """
    u = x.to(p.dtype)
    if x.shape[1] == 1:
        h = torch.addcmul(p * u[:, 0, :, None], q, h)
        y = torch.mul(gamma, h).sum(-1).real.unsqueeze(1)
    else:
        with torch.autocast(x.device.type, enabled=False):
            y, h = _blocks(u, h, p, q, gamma)
    return (y + u).to(x.dtype), h


def _blocks(x: Tensor, h: Tensor, p: Tensor, q: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, features = x.shape
    size = min(BLOCK, length)
    powers = _powers(q, size + 1)
    absorb, toeplitz, emit = _block_matrices(powers, p, gamma)
    count = -(-length // size)
    blocks = F.pad(x, (0, 0, 0, count * size - length)).view(batch, count, size, features)
    rows = blocks.permute(3, 1, 0, 2).contiguous().view(features, count * batch, size)

    # What each block alone adds to the state, then the state at each block's start.
    added = torch.view_as_complex(torch.bmm(rows, absorb).view(features, count, batch, -1, 2))
    state, starts = h.transpose(0, 1), []  # [D, B, N]
    for block in added.unbind(1):
        starts.append(state)
        state = torch.addcmul(block, powers[:, -1:], state)
    start = torch.view_as_real(torch.stack(starts, 1)).view(features, count * batch, -1)

    y = torch.bmm(rows, toeplitz) + torch.bmm(start, emit)  # [D, count * B, size]
    y = y.view(features, count, batch, size).permute(2, 1, 3, 0).reshape(batch, -1, features)
    rest = length % size
    if rest:  # the padding decayed the state: take the last block again, without it
        tail = rows.view(features, count, batch, size)[:, -1, :, :rest]
        last = torch.bmm(tail, absorb[:, size - rest :]).view(features, batch, -1, 2)
        state = torch.addcmul(torch.view_as_complex(last), powers[:, rest, None], starts[-1])
    return y[:, :length], state.transpose(0, 1)


def _powers(q: Tensor, count: int) -> Tensor:
    """q^0 .. q^(count - 1) [D, count, N], each the product of two powers taken in complex128."""
    low = _doubled(q.to(torch.complex128).unsqueeze(1), 8)
    high = _doubled(low[:, -1:] * low[:, 1:2], -(-count // 8))
    powers = high.to(q.dtype).unsqueeze(2) * low.to(q.dtype).unsqueeze(1)
    return powers.flatten(1, 2)[:, :count]


def _doubled(base: Tensor, count: int) -> Tensor:
    """base^0 .. base^(count - 1) [D, count, N] of base [D, 1, N]."""
    powers = torch.ones_like(base)
    while powers.shape[1] < count:
        powers = torch.cat([powers, powers * (powers[:, -1:] * base)], 1)
    return powers[:, :count]


def _block_matrices(powers: Tensor, p: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of a block of K steps, from q^0 .. q^K; state columns are N pairs (re, im).

    absorb [D, K, 2N]: a block's x to what it adds to the state at the block's end;
    toeplitz [D, K, K]: a block's x to its y; emit [D, 2N, K]: the state at its start to its y.
    """
    size = powers.shape[1] - 1
    absorb = torch.view_as_real(powers[:, :-1].flip(1) * p.unsqueeze(1)).flatten(-2)
    # Re(a b) = (re a, -im a) . (re b, im b)
    weight = torch.view_as_real(torch.conj_physical(gamma * p)).flatten(-2)  # [D, 2N]
    impulse = torch.view_as_real(powers[:, :-1]).flatten(-2) @ weight.unsqueeze(-1)  # [D, K, 1]
    toeplitz = F.pad(impulse.squeeze(-1), (size - 1, 0)).unfold(1, size, 1).flip(1)
    emit = torch.view_as_real(torch.conj_physical(gamma.unsqueeze(1) * powers[:, 1:])).flatten(-2)
    return absorb, toeplitz, emit.transpose(1, 2)
