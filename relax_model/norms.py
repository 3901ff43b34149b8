"""Timestep decay norm, group RMS norm and group layer norm as modules."""

from __future__ import annotations

from tvm.relax.frontend import nn

from .kernel_call import call, call_inplace, fresh
from .state import State


class TimestepDecayNorm(nn.Module):
    """TDN number ``index`` of the model: num_layers of them, then the output layer's."""

    def __init__(self, config, kernels, index: int):
        self.kernels, self.index = kernels, index
        dim, groups = config.model_dim, config.timenorm_num_groups
        self.weight = nn.Parameter([dim], "float32")
        self.bias = nn.Parameter([dim], "float32")
        self.prior_count = nn.Parameter([1], "int32")
        self.prior_mean = nn.Parameter([groups], "float32")
        self.prior_var = nn.Parameter([groups], "float32")

    def forward(self, x: nn.Tensor, state: State, batched: bool) -> nn.Tensor:
        state.mean, state.var, y = call_inplace(
            self.kernels.timenorm(batched),
            "timenorm_step" if batched else "timenorm",
            [
                x,
                self.weight,
                self.bias,
                self.prior_count,
                state.slots,
                state.position,
                state.mean,
                state.var,
                self.index,
            ],
            [6, 7],
            fresh(x.shape),
        )
        return y

    def reset(self, state: State) -> None:
        state.mean, state.var = call_inplace(
            self.kernels.fill_slot_norm(),
            "fill_slot_norm",
            [state.slots, self.prior_mean, self.prior_var, state.mean, state.var, self.index],
            [3, 4],
        )


class GroupRMSNorm(nn.Module):
    def __init__(self, config, kernels):
        self.kernels = kernels
        self.weight = nn.Parameter([config.model_dim], "float32")

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return call(self.kernels.rmsnorm(), "rmsnorm", [x, self.weight], fresh(x.shape))


class GroupLayerNorm(nn.Module):
    def __init__(self, config, kernels):
        self.kernels = kernels
        self.weight = nn.Parameter([config.model_dim], "float32")
        self.bias = nn.Parameter([config.model_dim], "float32")

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        arguments = [x, self.weight, self.bias]
        return call(self.kernels.layernorm(), "layernorm", arguments, fresh(x.shape))
