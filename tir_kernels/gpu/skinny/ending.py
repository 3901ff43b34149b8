"""What becomes of the sums of a product."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ...vector_math import f32


def _zero(others, b, output):
    return f32(0.0)


@dataclasses.dataclass(frozen=True)
class Ending:
    """``others`` are the buffers that a kernel reads and writes besides activations and weights.

    ``finish`` is an inline (others, sums, b, output) that takes an output's sum (its pair of them
    if gated) to where it belongs. ``start(others, b, output)`` is what the (first) sum starts
    from; it is read while the first weights are on their way, not behind the last.
    """

    finish: Callable
    start: Callable = _zero
