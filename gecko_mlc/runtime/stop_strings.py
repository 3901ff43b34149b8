"""Ending a growing text at the first of some strings, without giving out a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringError(ValueError):
    """A stop string that would end every text at once."""


class StopStrings:
    """Filters pieces of text; ``stopped`` once a stop string was complete.

    The text ends before the stop string that is complete first, and of those complete at the same
    character before the longest, however the text was cut into pieces. StopStringError for an empty
    string.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if "" in strings:
            raise StopStringError("a stop string is empty, wanted at least one character")
        self._strings = tuple(strings)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What can be given out of all text so far: no stop string can begin inside it."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [
            (start + len(stop), start) for stop in self._strings if (start := text.find(stop)) >= 0
        ]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text that was held back and is not a stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with (and does not end with)."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
