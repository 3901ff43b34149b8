"""Register arrays of which vectors are read and written."""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

_NAMES = {
    "float32": "float",
    "float16": "half",
    "int32": "int",
    "uint32": "uint",
    "uint16": "ushort",
    "int64": "long",
}


@tirx.transform.prim_func_pass(opt_level=0, name="gecko_mlc.scalar_registers")
def scalar_registers(function: tirx.PrimFunc, _mod, _context) -> tirx.PrimFunc:
    """A vector read from a register array is put together from its elements, and one stored into an
    array that is also written element by element is taken apart.

    TVM would print a cast of the array's address, to a type that wants more alignment than an array
    of scalars has.
    """
    scalars: set[tirx.Var] = set()

    def find(store: tirx.BufferStore) -> None:
        if store.value.ty.dtype.lanes == 1:
            scalars.add(store.buffer)

    def gather(load: TensorLoad):
        count = load.ty.dtype.lanes
        if count == 1 or load.source.ty.storage_scope != "local":
            return load
        elements = [tirx.BufferLoad(load.source, [place]) for place in _places(load.indices, count)]
        return tirx.call_pure_extern(load.ty.dtype, _vector(load.ty.dtype), *elements)

    def scatter(store: tirx.BufferStore) -> tirx.Stmt:
        count = store.value.ty.dtype.lanes
        if count == 1 or store.buffer.ty.storage_scope != "local" or store.buffer not in scalars:
            return store
        whole = tirx.Var(f"{store.buffer.name}_vector", store.value.ty)
        stores = [
            tirx.BufferStore(store.buffer, tirx.Shuffle([whole], [i]), [place])
            for i, place in enumerate(_places(store.indices, count))
        ]
        return tirx.stmt_seq(tirx.Bind(whole, store.value), *stores)

    tvm_ffi.structural_walk(function.body, (tirx.BufferStore, find))
    body = tvm_ffi.structural_map(
        function.body, [(TensorLoad, gather), (tirx.BufferStore, scatter)]
    )
    return function.with_body(body)


def _places(indices, count: int) -> list:
    (ramp,) = indices
    return [ramp.base + i * ramp.stride for i in range(count)]


def _vector(dtype) -> str:
    return f"{_NAMES[str(dtype.with_lanes(1))]}{dtype.lanes}"
