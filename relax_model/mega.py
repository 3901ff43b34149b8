"""The gated attention block: TDN, CEMA, sliding chunk attention and adaptive working memory."""

from __future__ import annotations

from tvm.relax.frontend import nn

from .kernel_call import call, call_inplace, fresh
from .norms import GroupRMSNorm, TimestepDecayNorm
from .packed_linear import PackedLinear
from .state import State


class MultiHeadComplexEMA(nn.Module):
    def __init__(self, config, kernels, layer: int):
        self.kernels, self.layer = kernels, layer
        dim, modes = config.model_dim, config.cema_ndim
        self.p = nn.Parameter([dim, modes], "float32")
        self.q = nn.Parameter([dim, modes, 2], "float32")
        self.gamma = nn.Parameter([dim, modes, 2], "float32")

    def forward(self, x: nn.Tensor, state: State, batched: bool) -> nn.Tensor:
        state.cema, y = call_inplace(
            self.kernels.cema(batched),
            "cema_step" if batched else "cema",
            [x, self.p, self.q, self.gamma, state.slots, state.cema, self.layer],
            [5],
            fresh(x.shape),
        )
        return y


class MovingAverageGatedAttention(nn.Module):
    def __init__(self, config, kernels, layer: int):
        self.config, self.kernels, self.layer = config, kernels, layer
        dim, z_dim, value_dim = config.model_dim, config.z_dim, config.value_dim
        self.timenorm = TimestepDecayNorm(config, kernels, layer)
        self.cema = MultiHeadComplexEMA(config, kernels, layer)
        self.rmsnorm = GroupRMSNorm(config, kernels)
        self.wv = PackedLinear(kernels, value_dim, dim, bias=value_dim)
        self.wzrh = PackedLinear(kernels, kernels.projected, dim, bias=kernels.projected)
        self.wh2 = PackedLinear(kernels, dim, value_dim)
        self.gamma = nn.Parameter([4, z_dim], "float32")
        self.beta = nn.Parameter([4, z_dim], "float32")

    def forward(self, x: nn.Tensor, rope: nn.Tensor, state: State, batched: bool) -> nn.Tensor:
        config, kernels = self.config, self.kernels
        rows = x.shape[0]
        o = self.timenorm(x, state, batched)
        mx = self.rmsnorm(self.cema(o, state, batched))
        v = call(
            kernels.wv(),
            "wv",
            [o, self.wv.weight, self.wv.bias],
            fresh([rows, config.value_dim]),
        )
        projected = call(
            kernels.wzrh(),
            "wzrh",
            [mx, self.wzrh.weight, self.wzrh.bias],
            fresh([rows, kernels.projected]),
        )
        state.keys, state.values, state.memory_keys, queries = call_inplace(
            kernels.attention_inputs(batched),
            "attention_inputs_step" if batched else "attention_inputs",
            [
                projected,
                v,
                self.gamma,
                self.beta,
                rope,
                state.slots,
                state.position,
                state.keys,
                state.values,
                state.memory_keys,
                self.layer,
            ],
            [7, 8, 9],
            fresh([rows, 3, config.z_dim]),
        )
        state.memory, gated = call_inplace(
            kernels.attention(batched),
            "attention_step" if batched else "attention",
            [
                queries,
                projected,
                state.slots,
                state.position,
                state.keys,
                state.values,
                state.memory,
                self.layer,
            ],
            [6],
            fresh([rows, config.value_dim]),
        )
        return call(kernels.wh2(), "wh2", [gated, self.wh2.weight, projected, x], fresh(x.shape))

    def commit(self, state: State) -> None:
        """The memory's update after the last token of a chunk."""
        state.memory, state.log_norm = call_inplace(
            self.kernels.memory_commit(),
            "memory_commit",
            [
                state.slots,
                state.position,
                state.memory_keys,
                state.values,
                state.memory,
                state.log_norm,
                self.layer,
            ],
            [4, 5],
        )
