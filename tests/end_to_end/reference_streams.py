"""What the tests of the whole compare with: float64 streams, distances, keys by position."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko, State
from gecko_mlc.reference.ops import rotary, rotation


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over norm."""
    assert found.shape == wanted.shape
    difference = found.astype(np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))


def float64_model(config: GeckoConfig, tensors: Mapping[str, np.ndarray]) -> Gecko:
    named = {name: torch.from_numpy(np.array(tensors[name])) for name in tensors}
    return Gecko.from_tensors(config, named, torch.float64)


def float64_logits(
    model: Gecko, tokens: np.ndarray, state: State | None = None
) -> tuple[np.ndarray, State]:
    """Logits [n, V] of n tokens of one sequence, and the state after them."""
    with torch.inference_mode():
        logits, state = model(torch.from_numpy(tokens.astype(np.int64))[None], state)
    return logits[0].numpy(), state


def turned_keys(keys: np.ndarray, positions: np.ndarray, config: GeckoConfig) -> np.ndarray:
    """keys [n, S] rotated further, each by the angle of a position. float64"""
    n, heads = len(keys), config.num_heads
    turns = torch.cat(
        [
            rotation(
                int(p), 1, config.z_head_dim, config.rope_base, torch.float64, torch.device("cpu")
            )
            for p in positions
        ]
    )
    split = torch.from_numpy(keys.astype(np.float64)).view(1, n, heads, -1)
    return rotary(split, turns, config.rope_heads).reshape(n, -1).numpy()
