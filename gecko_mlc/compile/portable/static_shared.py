"""Shared memory whose size a launch would give, as shared memory of a size the kernel states."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Op

from gecko_mlc.compile.portable.buffers import redeclared

_DYNAMIC = "shared.dyn"
_SIZE = "tirx.dyn_smem_bytes"  # an attribute: the size of a pool, which is allocated without one
_DATA = Op.get("tirx.buffer_data")


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.static_shared_memory")
def static_shared_memory(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """Buffers of scope ``shared.dyn`` become ``shared``: only CUDA sizes them at a launch."""
    sizes: list[int] = []

    def find(node: tirx.AttrStmt) -> None:
        if node.attr_key == _SIZE:
            sizes.append(int(node.value))

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, find))
    renamed: dict[tirx.Var, tirx.Var] = {}

    def rename(variable: tirx.Var) -> tirx.Var:
        if not tirx.is_buffer_var(variable) or variable.ty.storage_scope != _DYNAMIC:
            return variable
        if variable not in renamed:
            shape = variable.ty.shape
            if len(shape) == 1 and isinstance(shape[0], tirx.IntImm) and shape[0].value == 0:
                shape = sizes
            renamed[variable] = redeclared(variable, shape=shape, scope="shared")
        return renamed[variable]

    def data(call: Call):
        return tirx.buffer_data(call.args[0]) if call.op.same_as(_DATA) else call

    def drop(node: tirx.AttrStmt) -> tirx.Stmt:
        return node.body if node.attr_key == _SIZE else node

    return tvm_ffi.structural_map(
        function, [(tirx.Var, rename), (Call, data), (tirx.AttrStmt, drop)]
    )
