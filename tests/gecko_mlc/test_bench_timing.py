"""Turns, warm-up and ratios of the benchmark's clock, on a clock of the test's own."""

from __future__ import annotations

import pytest

from gecko_mlc.bench import timing
from gecko_mlc.bench.timing import Action, Effort, Timing, alternate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_actions_take_turns_in_blocks_and_warm_up_uncounted(clock: list[float]) -> None:
    ran: list[str] = []

    def action(name: str, first: float, later: float) -> Action:
        def run() -> None:
            fresh = not ran or ran[-1] != name
            ran.append(name)
            clock[0] += first if fresh else later

        return Action(run)

    actions = {"a": action("a", 0.9, 0.01), "b": action("b", 0.04, 0.02)}
    timings = alternate(actions, Effort(rounds=2, seconds=0.3))
    turns = "".join(name for i, name in enumerate(ran) if i == 0 or ran[i - 1] != name)
    assert turns == "abab"
    # A block that its first run fills has one counted run; the others go on until time is up.
    assert ran.count("a") == 2 * 2
    assert ran.count("b") == 2 * (1 + 13)
    assert timings["a"].rounds == pytest.approx((0.01, 0.01))
    assert timings["b"].rounds == pytest.approx((0.02, 0.02))


def test_preparation_is_not_timed(clock: list[float]) -> None:
    def prepare() -> None:
        clock[0] += 0.5

    def run() -> None:
        clock[0] += 0.125

    found = alternate({"x": Action(run, prepare)}, Effort(rounds=1, seconds=2.0))["x"]
    assert found.rounds == (0.125,)


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine was half as fast in the second round: that says nothing about the two."""
    fast, slow = Timing((1.0, 2.0, 1.0)), Timing((3.0, 6.0, 3.0))
    assert fast.over(slow) == 3.0
    assert slow.median == 3.0
