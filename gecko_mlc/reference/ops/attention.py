"""Sliding chunk attention: a query sees its own chunk causally and all of the one before."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Queries per step: the keys after the step's last query are left out of its products.
TILE = 128


def sliding_chunk_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention (scale 1) of n queries over the m >= n keys of their window.

    The last n keys are the queries' own positions, so query r sees keys 0 .. m - n + r. The window
    is the chunk before and the queries' own chunk up to the last query (in chunk 0 there is no
    chunk before). q [..., n, zh], k [..., m, zh], v [..., m, vh]; returns [..., n, vh].
    """
    n, m = q.shape[-2], k.shape[-2]
    if n == 1:
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    outputs = []
    for first in range(0, n, TILE):
        rows = min(TILE, n - first)
        last = m - n + first + rows
        scores = q[..., first : first + rows, :] @ k[..., :last, :].transpose(-1, -2)
        future = torch.full((rows, rows), -math.inf, dtype=scores.dtype, device=q.device).triu(1)
        scores[..., last - rows :] += future
        outputs.append(torch.softmax(scores, -1).to(v.dtype) @ v[..., :last, :])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -2)
