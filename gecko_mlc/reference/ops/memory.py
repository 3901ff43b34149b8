"""Adaptive working memory: what the chunks before the window leave behind, in constant size."""

from __future__ import annotations

import torch
from torch import Tensor

from gecko_mlc.reference.ops.precision import wide


def memory_read(query: Tensor, memory: Tensor) -> Tensor:
    """`softmax_features(query) @ memory`.

    query [..., n, zh]; memory [..., zh, vh] in the state's dtype. Returns [..., n, vh] in query's
    dtype.
    """
    return torch.softmax(wide(query), -1).to(query.dtype) @ memory.to(query.dtype)


def memory_commit(
    memory: Tensor, log_norm: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Take the chunk before the one that has just closed into the memory.

    memory [..., zh, vh] and log_norm [..., zh], -inf while empty; key [..., C, zh] and value
    [..., C, vh] of that chunk. Returns the new memory and log_norm.
    """
    key, value = wide(key), wide(value)
    chunk_norm = torch.logsumexp(key, -2)
    total_norm = torch.logaddexp(log_norm, chunk_norm)
    ratio = torch.exp(chunk_norm - total_norm).unsqueeze(-1)
    over_positions = torch.softmax(key, -2).transpose(-1, -2)  # [..., zh, C]
    with torch.autocast(key.device.type, enabled=False):
        news = value - torch.softmax(key, -1) @ memory
        return torch.lerp(memory, over_positions @ news, ratio), total_norm
