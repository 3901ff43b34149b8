"""Calls of single operations, timed apart from what lies between them in a model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gecko_mlc.bench.kernel_clock import VM_FUNCTIONS, Timer
from gecko_mlc.bench.timing import Action
from gecko_mlc.runtime.engine import Engine

# By operation: every call of it in one run of something.
Calls = Mapping[str, Sequence[Callable[[], object]]]


def recorded(engine: Engine, action: Action, operation: Callable[[str], str]) -> Calls:
    """The kernels that ``action`` runs, to be called again with the arguments they had.

    ``operation`` gives the operation that a kernel's name stands for.
    """
    calls: dict[str, list[Callable[[], object]]] = {}

    def listen(function, name, before: bool, _result, *arguments) -> int:
        if before and not name.startswith(VM_FUNCTIONS):
            calls.setdefault(operation(name), []).append(partial(function, *arguments))
        return 0  # VMInstrumentReturnKind.NO_OP: go on with the call

    action.prepare()
    with engine.observe(listen):
        action.run()
    return calls


class CallClock:
    """Times each of ``calls``; ``seconds`` gives an operation's median over all calls and runs."""

    def __init__(self, calls: Calls, timer: Timer) -> None:
        self._calls, self._timer = calls, timer
        self._seconds: dict[str, list[float]] = {name: [] for name in calls}

    def action(self) -> Action:
        return Action(self._run)

    def seconds(self) -> dict[str, float]:
        return {name: statistics.median(seconds) for name, seconds in self._seconds.items()}

    def _run(self) -> None:
        timer = self._timer
        timer.begin()
        for calls in self._calls.values():
            for call in calls:
                timer.start()
                call()
                timer.stop()
        seconds = iter(timer.finish())
        for name, calls in self._calls.items():
            self._seconds[name] += [next(seconds) for _ in calls]
