"""Threadgroup memory of which vectors are read and written."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op, TensorLoad

from gecko_mlc.compile.metal.limits import LANES

_DATA = Op.get("tirx.buffer_data")


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.align_threadgroup_memory")
def align_threadgroup_memory(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """An array that is accessed by vectors is allocated as vectors, and seen as scalars.

    An array of scalars is aligned for a scalar alone, and TVM would print vector accesses to it.
    """
    wide: set[tirx.Var] = set()
    whole: dict[tirx.Var, tirx.Var] = {}  # what a view is a view of

    def load(access: TensorLoad) -> None:
        if access.ty.dtype.lanes > 1:
            wide.add(access.source)

    def store(access: tirx.BufferStore) -> None:
        if access.value.ty.dtype.lanes > 1:
            wide.add(access.buffer)

    def view(statement: tirx.DeclBuffer) -> None:
        if isinstance(statement.data, Call) and statement.data.op.same_as(_DATA):
            whole[statement.buffer] = statement.data.args[0]

    def allocate(statement: tirx.AllocBuffer) -> tirx.Stmt:
        array = statement.buffer
        kind = array.ty.dtype.dtype
        if array.ty.storage_scope != "shared" or array not in wide or kind.lanes > 1:
            return statement
        (count,) = array.ty.shape
        vectors = tirx.decl_buffer(
            [-(-int(count) // LANES)], f"{kind}x{LANES}", f"{array.name}_vectors", scope="shared"
        )
        return tirx.stmt_seq(
            tirx.AllocBuffer(vectors), tirx.DeclBuffer(array, data=tirx.buffer_data(vectors))
        )

    tvm_ffi.structural_walk(
        function.body, [(TensorLoad, load), (tirx.BufferStore, store), (tirx.DeclBuffer, view)]
    )
    for array in list(wide):
        while array in whole:
            array = whole[array]
            wide.add(array)
    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, allocate)))
