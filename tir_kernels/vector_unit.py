"""What a kernel's schedule asks of the processor: vector width and register tile."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class VectorUnit:
    """One core's float32 vector unit.

    ``lanes`` floats fit a register; a matrix product keeps ``rows`` x 2 of them as
    accumulators, which must leave two registers for the weights and one for a broadcast.
    """

    lanes: int
    rows: int

    @property
    def panel(self) -> int:
        """Columns of one weight panel: two registers wide, so one broadcast feeds two products."""
        return 2 * self.lanes

    def narrowed(self, extent: int) -> VectorUnit:
        """The unit with panels that divide ``extent``, where ``extent`` is even."""
        if extent % self.panel == 0 or extent % 2:
            return self
        return VectorUnit(lanes=math.gcd(extent // 2, self.lanes), rows=self.rows)

    def fit(self, extent: int) -> int:
        """The widest vector that divides ``extent``."""
        return math.gcd(extent, self.lanes)


AVX512 = VectorUnit(lanes=16, rows=8)
AVX2 = VectorUnit(lanes=8, rows=6)
NEON = VectorUnit(lanes=8, rows=4)
PORTABLE = VectorUnit(lanes=4, rows=4)
