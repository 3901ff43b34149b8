"""Calls of TensorIR kernels from the graph."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.relax.frontend import nn


def fresh(shape: list, dtype: str = "float32") -> nn.Tensor:
    """A tensor that a kernel fills."""
    return nn.Tensor.placeholder(shape, dtype)


def call(kernel, name: str, args: list, *outputs: nn.Tensor):
    """A kernel that fills ``outputs``: the filled tensor, or a tuple where there are several."""
    wanted = outputs[0] if len(outputs) == 1 else list(outputs)
    return nn.op.tensor_ir_op(kernel, name, _arguments(args), wanted)


def call_inplace(kernel, name: str, args: list, updated: list[int], *outputs: nn.Tensor):
    """A kernel that updates ``args[i]`` for i in ``updated`` and fills ``outputs``.

    Returns the updated tensors, then the filled ones.
    """
    out = [fresh(args[i].shape, args[i].dtype) for i in updated] + list(outputs)
    indices = [*updated, *(-1 for _ in outputs)]
    arguments = _arguments(args)
    if len(out) == 1:
        return [nn.op.tensor_ir_inplace_op(kernel, name, arguments, indices, out[0])]
    return nn.op.tensor_ir_inplace_op(kernel, name, arguments, indices, out)


def view(x: nn.Tensor, shape: list) -> nn.Tensor:
    """x with another shape over the same memory, so that writing to it writes to x."""
    result = relax.call_pure_packed(
        "vm.builtin.reshape",
        x._expr,
        relax.ShapeExpr(shape),
        ty_args=relax.TensorType(shape, x.dtype),
    )
    return nn.op.wrap_nested(relax.BlockBuilder.current().emit(result), name="view")


def _arguments(args: list) -> list:
    """Integers among a kernel's arguments (a layer's number) pass as int64."""
    return [tirx.IntImm("int64", arg) if isinstance(arg, int) else arg for arg in args]
