"""Timing several actions against one another on a machine that is not quiet."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

# The library's and PyTorch's worker threads keep spinning for some milliseconds after their last
# task, and caches hold the other one's data: what starts this early in a block is not counted.
SETTLE_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure: ``rounds`` rounds of a block of ``seconds`` for each action."""

    rounds: int = 5
    seconds: float = 0.3


class Action(NamedTuple):
    """What is timed, and what has to happen before each time, outside it."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per run of one action: the median of each round's block."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def over(self, other: Timing) -> float:
        """How many times faster this is than ``other``: the median over rounds of their ratios."""
        ratios = (b / a for a, b in zip(self.rounds, other.rounds, strict=True))
        return statistics.median(ratios)


def alternate(actions: Mapping[str, Action], effort: Effort) -> dict[str, Timing]:
    """Time every action in turn, A B A B: a change of the machine's pace meets all of them.

    A turn is a block of repeated runs, not one run: alternating single runs would time each action
    beside the other's spinning threads, and penalise whichever has the shorter patience. The first
    run of a block, and those begun within ``SETTLE_SECONDS``, only warm up; at least one more run
    follows, however long it takes.
    """
    rounds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(effort.rounds):
        for name, action in actions.items():
            rounds[name].append(statistics.median(_block(action, effort.seconds)))
    return {name: Timing(tuple(medians)) for name, medians in rounds.items()}


def _block(action: Action, seconds: float) -> list[float]:
    """Seconds of each counted run of a block."""
    times: list[float] = []
    first = True
    started = time.perf_counter()
    while not times or time.perf_counter() - started < seconds:
        action.prepare()
        start = time.perf_counter()
        action.run()
        end = time.perf_counter()
        if not first and start - started >= min(SETTLE_SECONDS, seconds / 4):
            times.append(end - start)
        first = False
    return times
