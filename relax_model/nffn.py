"""The normalised feed-forward network."""

from __future__ import annotations

from tvm.relax.frontend import nn

from .kernel_call import call, fresh
from .norms import GroupLayerNorm
from .packed_linear import PackedLinear


class NormalizedFeedForwardNetwork(nn.Module):
    def __init__(self, config, kernels):
        self.config, self.kernels = config, kernels
        dim, hidden = config.model_dim, config.ffn_hidden_dim
        self.norm = GroupLayerNorm(config, kernels)
        self.fc1 = PackedLinear(kernels, hidden, dim, gated=config.swiglu)
        self.fc2 = PackedLinear(kernels, dim, hidden)
        self.alpha = nn.Parameter([dim], "float32") if config.rescale_nffn else None

    def forward(self, x: nn.Tensor, residual: nn.Tensor) -> nn.Tensor:
        kernels = self.kernels
        normed = self.norm(x)
        hidden = call(
            kernels.fc1(),
            "fc1",
            [normed, self.fc1.weight],
            fresh([x.shape[0], self.config.ffn_hidden_dim]),
        )
        scale = [] if self.alpha is None else [self.alpha]
        arguments = [hidden, self.fc2.weight, residual, *scale]
        return call(kernels.fc2(), "fc2", arguments, fresh(x.shape))
