"""Timestep decay norm (TDN): normalise by decaying averages of the steps' means and variances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gecko_mlc.reference.ops.precision import state_dtype, wide

# Steps whose averages one matrix product takes at once.
SPAN = 128


def timestep_decay_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    count: int,
    weight: Tensor,
    bias: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """TDN of T steps, from the averages that `count` earlier steps left.

    x [B, T, D]; mean, var [B, G], the averages without bias correction; weight (already one above
    the stored one) and bias [D]. Returns y [B, T, D] in x's dtype and the new mean and var.
    """
    groups = mean.shape[-1]
    grouped = wide(x).unflatten(-1, (groups, -1))  # [B, T, G, D / G]
    step_mean = grouped.mean(-1)  # [B, T, G]
    step_var = (grouped - step_mean.unsqueeze(-1)).square().mean(-1)
    means = decaying_average(step_mean, mean, beta1)
    variances = decaying_average(step_var, var, beta2)
    centre = means / bias_correction(beta1, count, x)
    scale = torch.rsqrt(variances / bias_correction(beta2, count, x) + eps)
    y = (grouped - centre.unsqueeze(-1)) * scale.unsqueeze(-1)
    y = torch.addcmul(bias, y.flatten(-2), weight)
    return y.to(x.dtype), means[:, -1], variances[:, -1]


def decaying_average(x: Tensor, average: Tensor, beta: float) -> Tensor:
    """`a_t = beta a_(t-1) + (1 - beta) x_t` for every step t.

    x [B, T, G]; average [B, G] before the first step. Returns [B, T, G].
    """
    if x.shape[1] == 1:
        return torch.lerp(average, x[:, 0], 1.0 - beta).unsqueeze(1)
    span = min(SPAN, x.shape[1])
    step = torch.arange(span, dtype=torch.float64, device=x.device)
    decay = torch.exp((step + 1.0) * math.log(beta)).to(x.dtype)  # [K]
    lag = step.unsqueeze(1) - step  # [K, K]
    share = (torch.exp(lag.clamp(min=0.0) * math.log(beta)) * (1.0 - beta)).tril().to(x.dtype)
    averages = []
    with torch.autocast(x.device.type, enabled=False):
        for part in x.split(span, dim=1):
            n = part.shape[1]
            carried = decay[:n, None] * average.unsqueeze(1)  # [B, n, G]
            averages.append(torch.matmul(share[:n, :n], part) + carried)
            average = averages[-1][:, -1]
    return torch.cat(averages, 1)


def bias_correction(beta: float, count: int, x: Tensor) -> float | Tensor:
    """`1 - beta^c` after each of x's T steps, c counting from `count` + 1: a number or [T, 1].

    In float64 and through expm1: in float32 `1 - 0.9999` is already off by 1.7e-4.
    """
    if x.shape[1] == 1:
        return -math.expm1((count + 1) * math.log(beta))
    steps = torch.arange(count + 1, count + 1 + x.shape[1], dtype=torch.float64, device=x.device)
    return -torch.expm1(steps * math.log(beta)).unsqueeze(-1).to(state_dtype(x.dtype))
