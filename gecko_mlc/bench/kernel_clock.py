"""Time per kernel inside a library's calls."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict

from gecko_mlc.bench.timing import Action
from gecko_mlc.runtime.library import Library
from tir_kernels.cost import operation

_BUILTIN = "vm.builtin."
# What the virtual machine runs between kernels beside its builtins: arithmetic on shapes.
_SHAPE_FUNCTION = "shape_func"


class KernelClock:
    """Runs actions with a clock around every kernel; some tenths of a microsecond each."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._runs: list[tuple[Counter[str], dict[str, float]]] = []
        self._calls: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._start = 0.0

    def action(self, plain: Action) -> Action:
        """``plain`` with the clock on, remembered apart for each run."""

        def run() -> None:
            self._calls, self._seconds = Counter(), defaultdict(float)
            self._library.set_instrument(self._around)
            try:
                plain.run()
            finally:
                self._library.set_instrument(None)
            self._runs.append((self._calls, self._seconds))

        return Action(run, plain.prepare)

    def kernels(self) -> dict[str, tuple[int, float]]:
        """Operation to calls in a run, and the median over runs of all of them in seconds."""
        calls, _ = self._runs[-1]
        return {
            name: (count, statistics.median(seconds[name] for _, seconds in self._runs))
            for name, count in calls.items()
            if name not in ("builtin", "shape")
        }

    def between(self) -> int:
        """Calls of the virtual machine's own functions in a run."""
        calls, _ = self._runs[-1]
        return calls["builtin"] + calls["shape"]

    def _around(self, _function, name, before: bool, _result, *_arguments) -> int:
        if before:
            self._start = time.perf_counter()
        else:
            seconds = time.perf_counter() - self._start
            if name.startswith(_BUILTIN):
                name = "builtin"
            elif name.startswith(_SHAPE_FUNCTION):
                name = "shape"
            else:
                name = operation(name)
            self._calls[name] += 1
            self._seconds[name] += seconds
        return 0  # VMInstrumentReturnKind.NO_OP: go on with the call
