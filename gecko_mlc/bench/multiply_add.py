"""The processor's multiply rate: multiply-adds on registers alone, compiled for this machine."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import tirx as T

from gecko_mlc.bench.timing import Action, Effort, alternate
from gecko_mlc.compile.targets import cpu_target
from tir_kernels import inline_lookup as inline_lookup

_STEPS = 20000
# Independent chains per core: more than any processor needs to hide a multiply-add's latency.
_CHAINS = 12


def _chains(lanes: int, tasks: int):
    """sums [tasks, chains, lanes] = sums * x + y, ``_STEPS`` times over, x and y [lanes]."""

    @T.prim_func(s_tir=True, private=True)
    def multiply_add(factors: T.handle, sums: T.handle):
        T.func_attr({"tirx.noalias": True})
        Factors = T.match_buffer(factors, (2, lanes), "float32")
        Sums = T.match_buffer(sums, (tasks, _CHAINS, lanes), "float32")
        for task in T.parallel(tasks):
            acc = T.alloc_buffer((_CHAINS, lanes), "float32")
            for c in T.unroll(_CHAINS):
                for j in T.vectorized(lanes):
                    acc[c, j] = Sums[task, c, j]
            for _ in T.serial(_STEPS):
                for c in T.unroll(_CHAINS):
                    for j in T.vectorized(lanes):
                        acc[c, j] = acc[c, j] * Factors[0, j] + Factors[1, j]
            for c in T.unroll(_CHAINS):
                for j in T.vectorized(lanes):
                    Sums[task, c, j] = acc[c, j]

    return multiply_add


def multiply_add_rate(threads: int, effort: Effort) -> float:
    """float32 operations per second with ``threads`` threads, two to a multiply-add.

    Needs TVM's compiler: ImportError without it. The thread pool is used as it is set.
    """
    target = cpu_target()
    lanes = target.unit.lanes
    kernel = _chains(lanes, threads).with_attr("global_symbol", "main")
    library = tvm.compile(tvm.IRModule({"main": kernel}), target=target.tvm_target)
    factors = np.stack([np.full(lanes, 0.999, np.float32), np.full(lanes, 0.001, np.float32)])
    arguments = (
        tvm.runtime.tensor(factors),
        tvm.runtime.tensor(np.ones((threads, _CHAINS, lanes), np.float32)),
    )
    function = library["main"]
    timing = alternate({"multiply-add": Action(lambda: function(*arguments))}, effort)
    return 2 * threads * _STEPS * _CHAINS * lanes / timing["multiply-add"].median
