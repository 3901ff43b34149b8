"""Which dtype carries statistics and recurrent state."""

from __future__ import annotations

import torch
from torch import Tensor


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 beside float64, otherwise float32.

    A bfloat16 state silently stops updating once an update is below 1/256 of the state, which
    beta2 = 0.9999 guarantees (DESIGN section 3).
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """`x` in the dtype of `state_dtype`."""
    return x.to(state_dtype(x.dtype))
