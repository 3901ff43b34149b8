"""Which values are the same in all threads of a CTA, and so which control flow they share."""

from __future__ import annotations

from collections.abc import Iterable

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad

# Calls with a result that depends on the thread even where their arguments do not.
_SHUFFLES = ("tirx.tvm_warp_shuffle", "tirx.tvm_warp_activemask", "tirx.tvm_thread_")


class Uniformity:
    """What a kernel's values depend on. Fill it in program order, then ask.

    A value is taken to differ between threads if it comes from a thread's index or from a shuffle,
    directly or by way of a register that was assigned such a value, or assigned anything under a
    condition of that kind. Loads from memory that threads share are as uniform as their address:
    a kernel reads what another thread wrote only behind a barrier.
    """

    def __init__(self) -> None:
        self._sources: dict[tirx.Var, list] = {}
        self._divergent: set[tirx.Var] = set()

    def thread_index(self, variable: tirx.Var) -> None:
        """``variable`` is the index of a thread in its CTA."""
        self._divergent.add(variable)

    def depends(self, variable: tirx.Var, expressions: Iterable) -> None:
        """``variable``, a scalar or a register array, takes its value from ``expressions``."""
        self._sources.setdefault(variable, []).extend(expressions)

    def same(self, view: tirx.Var, data) -> None:
        """``view`` is another name for registers, those of the buffer in ``data``."""
        self.depends(view, [data])
        tvm_ffi.structural_walk(data, (tirx.Var, lambda buffer: self.depends(buffer, [view])))

    def is_uniform(self, expressions: Iterable) -> bool:
        """Whether all threads of a CTA find the same values in ``expressions``."""
        pending, seen = list(expressions), set()
        while pending:
            reads: list[tirx.Var] = []
            shuffles: list[Call] = []
            tvm_ffi.structural_walk(
                pending.pop(),
                [
                    (TensorLoad, lambda load: reads.append(load.source)),  # noqa: B023
                    (tirx.Var, lambda variable: reads.append(variable)),  # noqa: B023
                    (Call, lambda call: shuffles.append(call)),  # noqa: B023
                ],
            )
            if any(call.op.name.startswith(_SHUFFLES) for call in shuffles):
                return False
            for variable in reads:
                if variable in self._divergent:
                    return False
                if variable not in seen:
                    seen.add(variable)
                    pending.extend(self._sources.get(variable, []))
        return True
