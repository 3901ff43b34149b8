"""Sliding chunk attention, the memory read and the gate: gated = attention * r + memory.

A query at index i of chunk c attends to all of chunk c-1 and to indices 0..i of its own chunk, by
plain softmax; to that, gated by r, comes softmax_features(aq) @ M from the adaptive working memory
(empty until chunk 2). Keys count from 0 at the start of chunk c-1 (of chunk 0 while there is no
previous one); key k stands in ring row (base + k) mod 2C.
"""

from .decode import attention_decode
from .prefill import attention_prefill

__all__ = ["attention_decode", "attention_prefill"]
