"""What tiles that warps multiply on tensor cores have in common."""

from __future__ import annotations

import dataclasses

from .reduce import WARP


@dataclasses.dataclass(frozen=True)
class WarpTile:
    """rows x columns by warp_rows x warp_columns warps; the right operand is [N, K] or [K, N]."""

    dtype: str
    rows: int
    columns: int
    warp_rows: int
    warp_columns: int
    right_by_depth: bool = False

    @property
    def threads(self) -> int:
        return WARP * self.warp_rows * self.warp_columns

    @property
    def accumulators(self) -> int:
        """Float32 sums of a thread."""
        return self.rows * self.columns // self.threads
