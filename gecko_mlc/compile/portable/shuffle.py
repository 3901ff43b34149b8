"""Shuffles between the lanes of a warp, on devices with other warps or with none.

Kernels count in warps of 32 threads. A device's subgroup may be as large, larger, smaller or of
unknown size. What lies within a subgroup stays a shuffle; the rest becomes an exchange through
shared memory.
"""

from __future__ import annotations

from collections import Counter

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from gecko_mlc.compile.portable.exchange import Exchanges
from gecko_mlc.compile.portable.warp import SHUFFLE, SHUFFLE_XOR, is_shuffle
from tir_kernels.gpu.reduce import WARP


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.lower_shuffles")
def lower_shuffles(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """Leaves those shuffles of a kernel that its target's subgroups can do.

    That is all of them where ``thread_warp_size`` is a multiple of 32, else the exclusive-or by a
    constant below it. Metal's code generator knows shuffles from any lane only, so the exclusive-or
    becomes one. A shuffle that needs an exchange in divergent control flow is a CompileError.
    """
    if "tirx.is_global_func" not in function.attrs or "target" not in function.attrs:
        return function
    target = function.attrs["target"]
    if "gpu" not in target.keys:
        return function
    body = _without_unused(function.body)
    subgroup = int(target.attrs["thread_warp_size"])
    if target.kind.name == "metal":
        body = _xor_as_any(body)
    elif subgroup % WARP:
        name = str(function.attrs["global_symbol"])
        limit = target.attrs.get("max_shared_memory_per_block")
        body = Exchanges(name, subgroup, limit).lower(body)
    return function.with_body(body)


def _without_unused(body: tirx.Stmt) -> tirx.Stmt:
    """Without names that are given to shuffles and never used: TVM puts such a one in each kernel,
    and will not drop it, since a shuffle might do more than return a value.
    """
    occurrences: Counter[tirx.Var] = Counter()
    tvm_ffi.structural_walk(body, (tirx.Var, lambda variable: occurrences.update([variable])))

    def used(statement: tirx.Stmt) -> bool:
        return (
            not isinstance(statement, tirx.Bind)
            or not is_shuffle(statement.value)
            or occurrences[statement.var] > 1
        )

    def keep_used(sequence: tirx.SeqStmt) -> tirx.Stmt:
        kept = [statement for statement in sequence.seq if used(statement)]
        return sequence if len(kept) == len(sequence.seq) else tirx.stmt_seq(*kept)

    return tvm_ffi.structural_map(body, (tirx.SeqStmt, keep_used))


def _xor_as_any(body: tirx.Stmt) -> tirx.Stmt:
    threads: list[tirx.Var] = []

    def find(axis: tirx.IterVar) -> None:
        if axis.thread_tag == "threadIdx.x":
            threads.append(axis.var)

    def rewrite(call: Call) -> Call:
        if not is_shuffle(call) or not call.op.same_as(SHUFFLE_XOR):
            return call
        lanes, value, bits, *widths = call.args
        lane = (threads[0] % WARP) ^ bits
        return Call(SHUFFLE, [lanes, value, lane, *widths], ret_ty=call.ty)

    tvm_ffi.structural_walk(body, (tirx.IterVar, find))
    return tvm_ffi.structural_map(body, (Call, rewrite))
