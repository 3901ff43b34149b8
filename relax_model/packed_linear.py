"""The weight of a linear layer, packed for the kernels."""

from __future__ import annotations

from tvm.relax.frontend import nn


class PackedLinear(nn.Module):
    """A weight as the kernels read it; the kernel that ends the product is its user's choice."""

    def __init__(self, kernels, outputs: int, inputs: int, bias: int = 0, gated: bool = False):
        self.weight = nn.Parameter(kernels.packed_shape(outputs, inputs, gated), kernels.dtype)
        # The matrix in the weights, and how it is packed: for the library's metadata.
        self.weight.attrs["matrix"] = ([2 * outputs if gated else outputs, inputs], gated)
        self.bias = nn.Parameter([bias], "float32") if bias else None
