"""Time per kernel inside a library's calls."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Protocol

from gecko_mlc.bench.timing import Action
from gecko_mlc.runtime.engine import Engine

# How the names of what the virtual machine runs between kernels begin: its own functions, ours, and
# arithmetic on shapes.
VM_FUNCTIONS = ("vm.builtin.", "gecko_mlc.vulkan.", "shape_func")


class Timer(Protocol):
    """Times stretches of a run: ``start`` and ``stop`` around each, ``finish`` gives the seconds
    of all of them in order."""

    def begin(self) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def finish(self) -> list[float]: ...


class HostTimer:
    """For kernels that are over when their call returns; some tenths of a microsecond each."""

    def begin(self) -> None:
        self._seconds: list[float] = []

    def start(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> None:
        self._seconds.append(time.perf_counter() - self._start)

    def finish(self) -> list[float]:
        return self._seconds


class KernelClock:
    """Runs actions with a clock around every kernel.

    ``operation`` gives the operation that a kernel's name stands for.
    """

    def __init__(self, engine: Engine, timer: Timer, operation: Callable[[str], str]) -> None:
        self._engine, self._timer, self._operation = engine, timer, operation
        self._runs: list[dict[str, float]] = []
        self._names: list[str] = []
        self._between = 0

    def action(self, plain: Action) -> Action:
        """``plain`` with the clock on, remembered apart for each run."""

        def run() -> None:
            self._names, self._between = [], 0
            self._timer.begin()
            with self._engine.observe(self._around):
                plain.run()
            seconds: dict[str, float] = defaultdict(float)
            for name, time_taken in zip(self._names, self._timer.finish(), strict=True):
                seconds[name] += time_taken
            self._runs.append(seconds)

        return Action(run, plain.prepare)

    def kernels(self) -> dict[str, tuple[int, float]]:
        """Operation to calls in a run, and the median over runs of all of them in seconds."""
        return {
            name: (calls, statistics.median(seconds[name] for seconds in self._runs))
            for name, calls in Counter(self._names).items()
        }

    def between(self) -> int:
        """Calls of the virtual machine's own functions in a run."""
        return self._between

    def _around(self, _function, name, before: bool, _result, *_arguments) -> int:
        if name.startswith(VM_FUNCTIONS):
            self._between += before
        elif before:
            self._names.append(self._operation(name))
            self._timer.start()
        else:
            self._timer.stop()
        return 0  # VMInstrumentReturnKind.NO_OP: go on with the call
