"""TensorIR's statements as instructions."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad

from gecko_mlc.vulkan.buffers import Buffers
from gecko_mlc.vulkan.cooperative import is_cooperative
from gecko_mlc.vulkan.enumerants import BuiltIn, Op
from gecko_mlc.vulkan.expressions import Expressions
from gecko_mlc.vulkan.registers import Registers
from gecko_mlc.vulkan.unsupported import Unsupported
from gecko_mlc.vulkan.uses import is_run

# Iterations up to which a loop is written out, if that makes indices of local buffers constant.
_UNROLLED = 32

_BUILTINS = {"blockIdx": BuiltIn.WorkgroupId, "threadIdx": BuiltIn.LocalInvocationId}


class Statements:
    """Translates statements. ``threads`` is the size of a CTA, once its axes have been met."""

    def __init__(self, expressions: Expressions, buffers: Buffers):
        self._expressions, self._buffers = expressions, buffers
        self._scalars, self._code = expressions.scalars, expressions.code
        self.threads = [1, 1, 1]

    def translate(self, node: tirx.Stmt) -> None:
        self._expressions.begin_statement()
        match node:
            case tirx.SeqStmt():
                for statement in node.seq:
                    self.translate(statement)
            case tirx.BufferStore():
                self._store(node)
            case tirx.Bind():
                values = self._expressions.elements(node.value)
                self._expressions.bind(node.var, values, node.value)
            case tirx.Evaluate():
                if not isinstance(node.value, tirx.IntImm):
                    self._expressions.elements(node.value)
            case tirx.IfThenElse():
                self._branch(node)
            case tirx.For():
                self._loop(node)
            case tirx.AllocBuffer():
                self._buffers.allocate(node.buffer)
            case tirx.DeclBuffer():
                pass  # another view of memory, which Buffers knows
            case tirx.AttrStmt() if node.attr_key == "thread_extent":
                self._axis(node.node.thread_tag, node.node.var, node.value)
                self.translate(node.body)
            case tirx.AttrStmt() if node.attr_key == "reduce_scope":
                self.translate(node.body)  # which TVM has written out
            case tirx.AttrStmt():
                raise Unsupported(f"the attribute {node.attr_key}")
            case _:
                raise Unsupported(f"the statement {type(node).__name__}")

    def _axis(self, tag: str, variable: tirx.Var, extent) -> None:
        name, _, axis = tag.partition(".")
        if name not in _BUILTINS:
            raise Unsupported(f"the thread axis {tag}")
        number = "xyz".index(axis)
        if name == "threadIdx":
            if not isinstance(extent, tirx.IntImm):
                raise Unsupported(f"{extent} threads along {tag}, no constant")
            self.threads[number] = extent.value
        module, kind = self._code.module, self._scalars.kind("int32")
        vector = module.vector(kind, 3)
        position = module.builtin(_BUILTINS[name], vector)
        value = self._code.at_entry(
            Op.CompositeExtract,
            kind,
            self._code.at_entry(Op.Load, vector, position),
            number,
        )
        if isinstance(extent, tirx.IntImm) and extent.value == 1:
            value = self._scalars.constant("int32", 0)
        dtype = str(variable.ty.dtype)
        self._expressions.bind(variable, [self._scalars.cast(value, "int32", dtype)])

    def _store(self, node: tirx.BufferStore) -> None:
        values = self._expressions.elements(node.value)
        buffer, (index,) = node.buffer, node.indices
        if len(values) > 1 and not is_run(index):
            raise Unsupported(f"a store to {buffer.name} at indices that are not adjacent")
        first = index.base if len(values) > 1 else index
        if buffer.ty.storage_scope != "local":
            memory = self._buffers.memory(buffer)
            memory.store(self._expressions.index(first), str(buffer.ty.dtype.dtype), values)
            return
        local = self._buffers.local(buffer)
        if isinstance(local, Registers):
            local.store(first.value, values)
        else:
            local.store(self._expressions.index(first), values)

    def _branch(self, node: tirx.IfThenElse) -> None:
        condition = self._expressions.scalar(node.condition)
        otherwise = None
        if node.else_case is not None:
            otherwise = lambda: self.translate(node.else_case)  # noqa: E731
        self._code.branch(condition, lambda: self.translate(node.then_case), otherwise)

    def _loop(self, node: tirx.For) -> None:
        if node.kind not in (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED):
            raise Unsupported(f"a loop of kind {tirx.ForKind(node.kind).name.lower()}")
        dtype = str(node.loop_var.ty.dtype)
        step = 1 if node.step is None else int(node.step)
        if self._is_unrolled(node):
            for number in range(int(node.min), int(node.min) + int(node.extent), step):
                self._expressions.bind(node.loop_var, [self._scalars.constant(dtype, number)])
                self.translate(node.body)
            return
        first = self._expressions.scalar(node.min)
        extent = self._expressions.scalar(node.extent)
        end = self._scalars.binary("Add", dtype, first, extent)

        def body(counter: int) -> None:
            self._expressions.bind(node.loop_var, [counter])
            self.translate(node.body)

        self._code.loop(
            self._scalars.kind(dtype),
            first,
            self._scalars.constant(dtype, step),
            lambda counter: self._scalars.binary("LT", dtype, counter, end),
            body,
            self._written(node.body),
        )

    def _is_unrolled(self, node: tirx.For) -> bool:
        if not isinstance(node.min, tirx.IntImm) or not isinstance(node.extent, tirx.IntImm):
            return False
        if node.kind == tirx.ForKind.UNROLLED:
            return True
        return node.extent.value <= _UNROLLED and _indexes_local(node.body, node.loop_var)

    def _written(self, body: tirx.Stmt) -> list[int]:
        """The registers that ``body`` may store to."""
        buffers: dict[int, tirx.Var] = {}
        written: list[int] = []

        def stored(store: tirx.BufferStore) -> None:
            if store.buffer.ty.storage_scope == "local":
                buffers[store.buffer.__chandle__()] = store.buffer

        def called(call: Call) -> None:
            if is_cooperative(call):
                written.extend(self._expressions.cooperative().written(call))

        tvm_ffi.structural_walk(body, [(tirx.BufferStore, stored), (Call, called)])
        for buffer in buffers.values():
            local = self._buffers.known_local(buffer)
            if isinstance(local, Registers):
                written += local.existing()
        return written


def _indexes_local(body: tirx.Stmt, variable: tirx.Var) -> bool:
    """Whether a local buffer is indexed by something that depends on ``variable``."""

    def depends(index) -> bool:
        def check(found: tirx.Var):
            same = found.same_as(variable)
            return tvm_ffi.structural.VisitInterrupt(True) if same else None

        return tvm_ffi.structural_walk(index, (tirx.Var, check)) is not None

    def check(node):
        buffer = node.buffer if isinstance(node, tirx.BufferStore) else node.source
        found = buffer.ty.storage_scope == "local" and depends(node.indices[0])
        return tvm_ffi.structural.VisitInterrupt(True) if found else None

    return tvm_ffi.structural_walk(body, ((TensorLoad, tirx.BufferStore), check)) is not None
