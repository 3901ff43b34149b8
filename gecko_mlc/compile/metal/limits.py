"""Metal's limits on a kernel."""

from __future__ import annotations

from typing import NoReturn

import tvm_ffi
from tvm import tirx
from tvm.ir import Expr, PointerType, PrimType

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.portable.buffers import size_in_bytes

LANES = 4  # of a vector


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.check_metal_limits")
def check_limits(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """CompileError for a kernel that Metal could not compile or launch."""
    _Limits(function).check()
    return function


class _Limits:
    def __init__(self, function: tirx.PrimFunc):
        self._function = function
        self._name = str(function.attrs["global_symbol"])
        self._target = function.attrs["target"].attrs

    def check(self) -> None:
        self._check_arguments()
        self._check_threads()
        self._check_threadgroup_memory()
        self._check_types()

    def _check_arguments(self) -> None:
        pointers = [isinstance(parameter.ty, PointerType) for parameter in self._function.params]
        buffers = sum(pointers)
        # All numbers share one buffer.
        wanted = buffers + (buffers < len(pointers))
        limit = int(self._target["max_function_args"])
        if wanted > limit:
            self._fail(f"{wanted} buffers", f"at most {limit}")

    def _check_threads(self) -> None:
        threads = 1

        def find(statement: tirx.AttrStmt) -> None:
            nonlocal threads
            axis = statement.node
            if isinstance(axis, tirx.IterVar) and axis.thread_tag.startswith("threadIdx"):
                if not isinstance(statement.value, tirx.IntImm):
                    self._fail(f"{statement.value} threads along {axis.thread_tag}", "a constant")
                threads *= statement.value.value

        tvm_ffi.structural_walk(self._function.body, (tirx.AttrStmt, find))
        limit = int(self._target["max_num_threads"])
        if threads > limit:
            self._fail(f"{threads} threads a threadgroup", f"at most {limit}")

    def _check_threadgroup_memory(self) -> None:
        taken = 0

        def find(statement: tirx.AllocBuffer) -> None:
            nonlocal taken
            buffer = statement.buffer.ty
            if not buffer.storage_scope.startswith("shared"):
                return
            if buffer.storage_scope != "shared":
                self._fail(
                    f"{statement.buffer.name} in memory of scope {buffer.storage_scope}",
                    "threadgroup memory of a size known when compiling (scope shared)",
                )
            taken = -(-taken // 16) * 16 + size_in_bytes(statement.buffer)

        tvm_ffi.structural_walk(self._function.body, (tirx.AllocBuffer, find))
        limit = int(self._target["max_shared_memory_per_block"])
        if taken > limit:
            self._fail(f"{taken} bytes of threadgroup memory", f"at most {limit}")

    def _check_types(self) -> None:
        def find(expression: Expr) -> None:
            if not isinstance(expression.ty, PrimType):
                return
            kind = expression.ty.dtype
            if str(kind).startswith("float64"):
                self._fail(f"{expression} in float64", "float32 or float16: Metal has no double")
            if kind.lanes > LANES:
                self._fail(f"a vector of {kind.lanes} elements, {expression}", f"at most {LANES}")

        tvm_ffi.structural_walk(self._function.body, (Expr, find))

    def _fail(self, found: str, wanted: str) -> NoReturn:
        raise CompileError(f"kernel {self._name}: found {found}, wanted {wanted} (Metal)")
