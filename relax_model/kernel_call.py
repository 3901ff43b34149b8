"""Calls of TensorIR kernels from the graph."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.relax.frontend import nn


def call(kernel, name: str, args: list, shape: list, dtype: str = "float32") -> nn.Tensor:
    """A kernel with one fresh output."""
    return nn.op.tensor_ir_op(kernel, name, args, nn.Tensor.placeholder(shape, dtype))


def call_inplace(kernel, name: str, args: list, updated: list[int], fresh: list | None = None):
    """A kernel that updates ``args[i]`` for i in ``updated`` and fills a fresh float32 output.

    Integers among the arguments pass as int64 (a layer's number). Returns the updated tensors,
    then the fresh one of shape ``fresh``, if any.
    """
    args = [tirx.IntImm("int64", arg) if isinstance(arg, int) else arg for arg in args]
    out = [nn.Tensor.placeholder(args[i].shape, args[i].dtype) for i in updated]
    indices = list(updated)
    if fresh is not None:
        out.append(nn.Tensor.placeholder(fresh, "float32"))
        indices.append(-1)
    if len(out) == 1:
        return [nn.op.tensor_ir_inplace_op(kernel, name, args, indices, out[0])]
    return nn.op.tensor_ir_inplace_op(kernel, name, args, indices, out)


def view(x: nn.Tensor, shape: list) -> nn.Tensor:
    """x with another shape over the same memory, so that writing to it writes to x."""
    result = relax.call_pure_packed(
        "vm.builtin.reshape",
        x._expr,
        relax.ShapeExpr(shape),
        ty_args=relax.TensorType(shape, x.dtype),
    )
    return nn.op.wrap_nested(relax.BlockBuilder.current().emit(result), name="view")
