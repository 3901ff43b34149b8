"""Shuffles that a subgroup cannot do, as exchanges through shared memory.

Each thread stores its value, all wait, each loads the one it wants. The whole CTA must come to that
wait, so the control flow around it has to be the same in all threads.
"""

from __future__ import annotations

from typing import NoReturn

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.portable.buffers import size_in_bytes
from gecko_mlc.compile.portable.uniform import Uniformity
from gecko_mlc.compile.portable.warp import (
    BARRIER,
    SHUFFLE,
    SHUFFLE_DOWN,
    SHUFFLE_UP,
    SHUFFLE_XOR,
    is_barrier,
    is_shuffle,
)
from tir_kernels.gpu.reduce import WARP

_WORD = 4  # bytes of an exchanged value
_IF_THEN_ELSE = "prim.if_then_else"


class Exchanges:
    """Lowers the body of the kernel called ``kernel`` for subgroups of ``subgroup`` threads.

    An exchange takes a word for each thread. Two areas of that size take turns, so that the wait of
    one exchange also separates the loads of the one before from the stores of the next; where
    ``limit`` bytes of shared memory do not suffice for two, there is one, and two waits.
    """

    def __init__(self, kernel: str, subgroup: int, limit: int | None):
        self._kernel, self._subgroup, self._limit = kernel, subgroup, limit
        self._uniformity = Uniformity()
        self._shared = 0  # bytes that the kernel itself allocates
        self._conditions: list = []  # that lead to the statement at hand
        self._read: frozenset[int] = frozenset()  # areas read since the last barrier

    def lower(self, body: tirx.Stmt) -> tirx.Stmt:
        if not self._needed(body):
            return body
        self._survey(body, ())
        area = _WORD * self._threads
        two = self._limit is None or self._shared + 2 * area <= self._limit
        self._areas = frozenset(range(2 if two else 1))
        self._buffer = tirx.decl_buffer(
            (len(self._areas) * self._threads,), "uint32", "exchanged", scope="shared"
        )
        return self._statement(body)

    # What a shuffle or a warp's barrier needs.

    def _is_exchange(self, value) -> bool:
        if not is_shuffle(value):
            return False
        other = value.args[2]
        within = (
            value.op.same_as(SHUFFLE_XOR)
            and isinstance(other, tirx.IntImm)
            and 0 <= other.value < self._subgroup
        )
        return not within

    def _needed(self, node) -> bool:
        """Whether an exchange or the barrier of a warp is somewhere in ``node``."""

        def find(call: Call):
            found = self._is_exchange(call) or is_barrier(call, "warp")
            return tvm_ffi.structural.VisitInterrupt(True) if found else None

        return tvm_ffi.structural_walk(node, (Call, find)) is not None

    def _fail(self, what: str) -> NoReturn:
        subgroup = f"subgroups of {self._subgroup}" if self._subgroup > 1 else "no subgroups"
        raise CompileError(
            f"kernel {self._kernel}: {what}; on a target with {subgroup}, lanes of a warp exchange "
            "values through shared memory, with barriers that all threads of the CTA must reach. "
            f"Compile for a target whose thread_warp_size is {WARP}, or change the kernel"
        )

    # First pass: what every value depends on.

    def _survey(self, node: tirx.Stmt, conditions: tuple) -> None:
        match node:
            case tirx.SeqStmt():
                for statement in node.seq:
                    self._survey(statement, conditions)
            case tirx.AttrStmt():
                if isinstance(node.node, tirx.IterVar):
                    self._thread_axis(node.node.thread_tag, node.node.var, node.value)
                self._survey(node.body, conditions)
            case tirx.For():
                bounds = (node.min, node.extent)
                self._uniformity.depends(node.loop_var, bounds)
                self._survey(node.body, conditions + bounds)
            case tirx.While():
                self._survey(node.body, (*conditions, node.condition))
            case tirx.IfThenElse():
                self._survey(node.then_case, (*conditions, node.condition))
                if node.else_case is not None:
                    self._survey(node.else_case, (*conditions, node.condition))
            case tirx.Bind():
                self._uniformity.depends(node.var, [node.value])
            case tirx.BufferStore() if node.buffer.ty.storage_scope == "local":
                self._uniformity.depends(node.buffer, [node.value, *node.indices, *conditions])
            case tirx.DeclBuffer() if node.buffer.ty.storage_scope == "local":
                self._uniformity.same(node.buffer, node.data)
            case tirx.AllocBuffer() if node.buffer.ty.storage_scope.startswith("shared"):
                self._shared += size_in_bytes(node.buffer)

    def _thread_axis(self, tag: str, variable: tirx.Var, extent) -> None:
        if not tag.startswith("threadIdx"):
            return
        self._uniformity.thread_index(variable)
        if tag != "threadIdx.x":
            if not isinstance(extent, tirx.IntImm) or extent.value != 1:
                self._fail(f"its warps extend over {tag}")
            return
        if not isinstance(extent, tirx.IntImm) or extent.value % WARP:
            self._fail(f"a CTA has {extent} threads, which are no whole warps")
        self._thread, self._threads = variable, extent.value

    # Second pass: the kernel, rewritten.

    def _statement(self, node: tirx.Stmt) -> tirx.Stmt:
        match node:
            case tirx.SeqStmt():
                return tirx.stmt_seq(*[self._statement(statement) for statement in node.seq])
            case tirx.AttrStmt():
                return self._attribute(node)
            case tirx.For():
                return self._loop(node)
            case tirx.IfThenElse():
                return self._branch(node)
            case tirx.BufferStore():
                before, (value, *indices) = self._expressions([node.value, *node.indices])
                return tirx.stmt_seq(*before, tirx.BufferStore(node.buffer, value, indices))
            case tirx.Bind():
                before, (value,) = self._expressions([node.value])
                return tirx.stmt_seq(*before, tirx.Bind(node.var, value))
            case tirx.Evaluate():
                return self._evaluate(node)
            case _ if self._needed(node):
                self._fail(f"a shuffle or the barrier of a warp in a {type(node).__name__}")
        return node

    def _attribute(self, node: tirx.AttrStmt) -> tirx.Stmt:
        body = self._statement(node.body)
        innermost = not isinstance(node.body, tirx.AttrStmt)
        if isinstance(node.node, tirx.IterVar) and innermost:
            body = tirx.stmt_seq(tirx.AllocBuffer(self._buffer), body)
        return tirx.AttrStmt(node.node, node.attr_key, node.value, body)

    def _loop(self, node: tirx.For) -> tirx.Stmt:
        before, (first, extent) = self._expressions([node.min, node.extent])
        entry = self._read
        if self._needed(node.body):
            self._read = self._areas  # as an earlier iteration may have left it
        body = self._under([node.min, node.extent], node.body)
        self._read |= entry  # where there is no iteration
        loop = tirx.For(
            node.loop_var,
            first,
            extent,
            node.kind,
            body,
            node.thread_binding,
            node.annotations,
            node.step,
        )
        return tirx.stmt_seq(*before, loop)

    def _branch(self, node: tirx.IfThenElse) -> tirx.Stmt:
        before, (condition,) = self._expressions([node.condition])
        entry = self._read
        then_case = self._under([node.condition], node.then_case)
        after_then, self._read = self._read, entry
        else_case = None
        if node.else_case is not None:
            else_case = self._under([node.condition], node.else_case)
        self._read |= after_then
        return tirx.stmt_seq(*before, tirx.IfThenElse(condition, then_case, else_case))

    def _under(self, conditions: list, node: tirx.Stmt) -> tirx.Stmt:
        """``node`` below conditions, as the kernel has them: Uniformity knows no exchanges."""
        self._conditions.extend(conditions)
        result = self._statement(node)
        del self._conditions[-len(conditions) :]
        return result

    def _evaluate(self, node: tirx.Evaluate) -> tirx.Stmt:
        if is_barrier(node.value, "warp"):
            self._require_uniform("the barrier of a warp")
            return self._barrier()
        if is_barrier(node.value, "shared"):
            self._read = frozenset()
            return node
        before, (value,) = self._expressions([node.value])
        return tirx.stmt_seq(*before, tirx.Evaluate(value))

    def _expressions(self, values: list) -> tuple[list[tirx.Stmt], list]:
        """The values with loads in place of exchanges, and the statements to go before."""
        if not any(self._needed(value) for value in values):
            return [], values
        before: list[tirx.Stmt] = []
        done: list[tuple[Call, tirx.Var]] = []

        def rewrite(call: Call):
            if not self._is_exchange(call):
                return call
            for other, result in done:
                if tvm_ffi.structural_equal(call, other):
                    return result
            done.append((call, self._exchange(call, before)))
            return done[-1][1]

        for value in values:
            self._refuse_conditional(value)
        return before, [tvm_ffi.structural_map(value, (Call, rewrite)) for value in values]

    def _refuse_conditional(self, value) -> None:
        """A shuffle that some threads do not evaluate cannot be exchanged."""

        def check(node) -> None:
            if isinstance(node, Call):
                operands = node.args[1:] if node.op.name == _IF_THEN_ELSE else []
            else:
                operands = [node.b]
            if any(self._needed(operand) for operand in operands):
                self._fail("a shuffle in an expression that is evaluated on a condition")

        tvm_ffi.structural_walk(value, ((Call, tirx.And, tirx.Or), check))

    def _exchange(self, call: Call, before: list[tirx.Stmt]) -> tirx.Var:
        """Appends an exchange to ``before``; the variable that holds what this thread gets."""
        value, other, width = call.args[1], call.args[2], call.args[4]
        dtype = str(value.ty.dtype)
        self._require_uniform(f"a {call.op.name.removeprefix('tirx.')} of {dtype}")
        if not isinstance(width, tirx.IntImm) or width.value != WARP:
            self._fail(f"a shuffle of width {width} instead of {WARP}")
        if dtype not in ("float32", "int32", "uint32"):
            self._fail(f"a shuffle of {dtype}, which is no word of 32 bits")
        if self._read == self._areas:
            before.append(self._barrier())
        area = min(self._areas - self._read)
        first = area * self._threads
        word = value if dtype == "uint32" else tirx.reinterpret("uint32", value)
        before.append(tirx.BufferStore(self._buffer, word, [first + self._thread]))
        before.append(self._barrier())
        loaded = tirx.BufferLoad(self._buffer, [first + self._source(call.op, other)])
        result = tirx.Var("exchanged", dtype)
        self._read |= {area}
        if dtype != "uint32":
            loaded = tirx.reinterpret(dtype, loaded)
        before.append(tirx.Bind(result, loaded))
        return result

    def _source(self, shuffle, other):
        """The thread whose value this one gets."""
        thread, lane = self._thread, tirx.floormod(self._thread, WARP)
        if shuffle.same_as(SHUFFLE_XOR):
            return thread ^ other
        if shuffle.same_as(SHUFFLE):
            return thread - lane + tirx.floormod(other, WARP)
        if shuffle.same_as(SHUFFLE_UP):
            return tirx.Select(lane >= other, thread - other, thread)
        assert shuffle.same_as(SHUFFLE_DOWN)
        return tirx.Select(lane + other < WARP, thread + other, thread)

    def _require_uniform(self, what: str) -> None:
        if not self._uniformity.is_uniform(self._conditions):
            self._fail(f"{what} where only some threads of the CTA come")

    def _barrier(self) -> tirx.Stmt:
        self._read = frozenset()
        return tirx.Evaluate(Call(BARRIER, ["shared"], ret_ty="int32"))
