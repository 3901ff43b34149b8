"""How a step's attention is dealt out: a head's keys, and the rows of its memory, to CTAs."""

from __future__ import annotations

from tvm.script import tirx as T

from ..unit import GpuUnit
from ..vectors import vector_width

_MULTIPROCESSORS = 132  # of an H200
_MIN_SPLITS = 2
_MAX_KEYS = 4096  # of one CTA
_KEY_SHARE = 4  # of shared memory at most one part in so many is for scores of keys
_MIN_KEYS = 8  # of one CTA, unless the head has fewer
_AHEAD = 16  # keys, and accesses to values, that a thread of the only CTA has on their way

# What a row of partial results is, from the sum of its exponentials.
NOTHING, MEMORY = 0.0, -1.0


class Shares:
    """The work of a head's ``splits`` CTAs, in equal parts of the bytes that they read.

    ``resident`` CTAs are to be on a multiprocessor: one with a deep queue for a single sequence (of
    the 7B model: four heads); else two, the one reading while the other begins or ends. A thread
    has ``ahead`` accesses on their way. Positions are counted from 0; ``split`` is a CTA's number.
    """

    def __init__(
        self,
        batch: int,
        heads: int,
        z_head: int,
        v_head: int,
        chunk: int,
        dtype: str,
        unit: GpuUnit,
    ):
        self.z_head, self.chunk = z_head, chunk
        self.key_bytes = (z_head + v_head) * (16 // vector_width(dtype))
        self.row_bytes = v_head * 4
        self.resident = 1 if batch * heads <= 4 else 2
        self.ahead = _AHEAD // self.resident
        fill = _MULTIPROCESSORS * self.resident // (batch * heads)
        # More CTAs than that would never have anything to do.
        useful = -(-self._everything // (_MIN_KEYS * self.key_bytes))
        keys = min(_MAX_KEYS, unit.shared // (4 * _KEY_SHARE))
        self.splits = max(min(fill, useful), _MIN_SPLITS, -(-2 * chunk // keys))

    @property
    def rows(self) -> int:
        """Partial results of a head: one of each CTA, and one more."""
        return self.splits + 1

    @property
    def _everything(self) -> int:
        """Bytes of a head that sees all that it can."""
        return 2 * self.chunk * self.key_bytes + self.z_head * self.row_bytes

    @property
    def max_keys(self) -> int:
        return max(-(-self._everything // self.splits) // self.key_bytes, _MIN_KEYS) + 1

    @property
    def max_rows(self) -> int:
        return self.z_head

    def previous(self, position):
        """Visible keys of the previous chunk."""
        return T.Select(position >= self.chunk, self.chunk, 0)

    def visible(self, position):
        return self.previous(position) + T.truncmod(position, self.chunk) + 1

    def kept(self, position):
        """Rows of the memory: nothing is kept before the third chunk."""
        return T.Select(position >= 2 * self.chunk, self.z_head, 0)

    def bytes(self, position):
        """One CTA's share."""
        everything = self.visible(position) * self.key_bytes + self.kept(position) * self.row_bytes
        return T.max(
            T.truncdiv(everything + self.splits - 1, self.splits), _MIN_KEYS * self.key_bytes
        )

    def first_key(self, position, share, split):
        keys = T.truncdiv(split * share + self.key_bytes - 1, self.key_bytes)
        return T.min(keys, self.visible(position))

    def first_row(self, position, share, split):
        ahead = T.max(split * share - self.visible(position) * self.key_bytes, 0)
        return T.min(T.truncdiv(ahead + self.row_bytes - 1, self.row_bytes), self.kept(position))

    def ring_start(self, position):
        """The ring's row of the first visible key."""
        second = T.truncmod(position, 2 * self.chunk) < self.chunk
        return T.Select(T.And(position >= self.chunk, second), self.chunk, 0)

    def ring_row(self, start, key):
        row = start + key
        return T.Select(row >= 2 * self.chunk, row - 2 * self.chunk, row)
