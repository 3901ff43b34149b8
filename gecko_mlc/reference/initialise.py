"""Initial weights for training, distributed as in the reference implementation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def he(weight: Tensor) -> None:
    """For the projections [out, in]: normal with standard deviation 1 / sqrt(3 in)."""
    nn.init.kaiming_normal_(weight, a=math.sqrt(5.0))


def gaussian(weight: Tensor) -> None:
    """For the embedding and the output [V, D]: normal with deviation 1 / sqrt(D), cut at 3."""
    std = weight.shape[1] ** -0.5
    nn.init.trunc_normal_(weight, std=std, a=-3.0 * std, b=3.0 * std)


@torch.no_grad()
def cema(alpha: Tensor, delta: Tensor, theta: Tensor, gamma: Tensor) -> None:
    """Decays near one quarter, phases spread geometrically over the features in random order.

    alpha, delta [D, N], theta [D], gamma [D, N, 2].
    """
    features, modes = alpha.shape
    nn.init.normal_(alpha, std=0.2)
    nn.init.normal_(delta, std=0.2)
    nn.init.normal_(gamma, std=modes**-0.5)
    gamma[..., 1] = 0.0
    order = torch.randperm(features, device=theta.device)
    frequency = torch.exp((order + 1.0) * (-math.log(features) / features))
    theta.copy_(torch.log(frequency / (1.0 - frequency)))
