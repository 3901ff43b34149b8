"""Group RMS norm and group layer norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gecko_mlc.reference.ops.precision import wide


def group_rms_norm(x: Tensor, weight: Tensor | None, groups: int, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight`, the mean over each of `groups` groups of features.

    x [..., D]; weight [D] or None, already one above the stored one. Returns [..., D], x's dtype.
    """
    y = wide(x).unflatten(-1, (groups, -1))  # [..., groups, D / groups]
    y = F.rms_norm(y, y.shape[-1:], eps=eps).flatten(-2)
    return (y if weight is None else y * weight).to(x.dtype)


def group_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> Tensor:
    """Layer norm over each of `groups` groups of features.

    x [..., D]; weight (already one above the stored one) and bias [D], or both None.
    Returns [..., D], x's dtype.
    """
    y = wide(x).unflatten(-1, (groups, -1))  # [..., groups, D / groups]
    y = F.layer_norm(y, y.shape[-1:], eps=eps).flatten(-2)
    if weight is not None and bias is not None:
        y = torch.addcmul(bias, y, weight)
    return y.to(x.dtype)
