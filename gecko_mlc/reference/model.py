"""Gecko (arXiv 2601.06463) in plain PyTorch: the specification the compiled library is held to.

Modules and parameters are named as in the reference implementation's state dict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import initialise
from gecko_mlc.reference.ops import (
    cema_coefficients,
    complex_ema,
    group_layer_norm,
    group_rms_norm,
    rotary,
    rotation,
    state_dtype,
    timestep_decay_norm,
    wide,
)
from gecko_mlc.reference.state import LayerState, State
from gecko_mlc.reference.window import attend

Taps = dict[str, Tensor]


class Folded(nn.Module):
    """A module that computes with constants derived from its parameters.

    They are derived at every call while training or recording gradients, else once, and again
    after the parameters are loaded, moved or cast. (Not after an assignment to a parameter in
    evaluation mode: call `train(False)` then.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants: tuple | None = None

    def fold(self) -> tuple:
        raise NotImplementedError

    def constants(self) -> tuple:
        if self.training or torch.is_grad_enabled():
            return self.fold()
        if self._constants is None:
            self._constants = self.fold()
        return self._constants

    def train(self, mode: bool = True) -> Folded:
        self._constants = None
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._constants = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._constants = None
        return super()._load_from_state_dict(*args, **kwargs)


class TimestepDecayNorm(Folded):
    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.beta1, self.beta2 = config.timenorm_beta1, config.timenorm_beta2
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.zeros(config.model_dim))
        self.bias = nn.Parameter(torch.zeros(config.model_dim))
        self.prior_count: Tensor
        self.prior_mean: Tensor
        self.prior_var: Tensor
        self.register_buffer("prior_count", torch.tensor(0, dtype=torch.int64))
        self.register_buffer("prior_mean", torch.zeros(config.timenorm_num_groups))
        self.register_buffer("prior_var", torch.zeros(config.timenorm_num_groups))
        self._prior_count: int | None = None

    def fold(self) -> tuple[Tensor, Tensor, int]:
        if self._prior_count is None:  # read from the device once: it is no trained parameter
            self._prior_count = int(self.prior_count)
        return wide(self.weight) + 1.0, wide(self.bias), self._prior_count

    def _load_from_state_dict(self, *args, **kwargs):
        self._prior_count = None
        return super()._load_from_state_dict(*args, **kwargs)

    def start(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The priors in the shape of zero averages [B, G]."""
        return mean + self.prior_mean, var + self.prior_var

    def forward(
        self, x: Tensor, mean: Tensor, var: Tensor, position: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] from `position` on; mean, var [B, G]. Returns y, mean, var."""
        weight, bias, prior_count = self.constants()
        count = prior_count + position
        return timestep_decay_norm(
            x, mean, var, count, weight, bias, self.beta1, self.beta2, self.eps
        )


class ComplexEMA(Folded):
    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        features, modes = config.model_dim, config.cema_ndim
        self.alpha = nn.Parameter(torch.empty(features, modes))
        self.delta = nn.Parameter(torch.empty(features, modes))
        self.theta = nn.Parameter(torch.empty(features))
        self.gamma = nn.Parameter(torch.empty(features, modes, 2))
        initialise.cema(self.alpha, self.delta, self.theta, self.gamma)

    def fold(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = state_dtype(self.alpha.dtype)
        return cema_coefficients(self.alpha, self.delta, self.theta, self.gamma, dtype)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, D]; h [B, D, N] complex. Returns y and h."""
        return complex_ema(x, h, *self.constants())


class GroupRMSNorm(Folded):
    """With a weight [D] (stored minus one) when the configuration's `norm_affine` asks for it."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.groups, self.eps = config.layernorm_num_groups, config.norm_eps
        self.weight: Tensor | None
        weight = nn.Parameter(torch.zeros(config.model_dim)) if config.norm_affine else None
        self.register_parameter("weight", weight)

    def fold(self) -> tuple[Tensor | None]:
        return (None if self.weight is None else wide(self.weight) + 1.0,)

    def forward(self, x: Tensor) -> Tensor:
        (weight,) = self.constants()
        return group_rms_norm(x, weight, self.groups, self.eps)


class GroupLayerNorm(Folded):
    """With a weight (stored minus one) and a bias [D] when `norm_affine` asks for them."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.groups, self.eps = config.layernorm_num_groups, config.norm_eps
        self.weight: Tensor | None
        self.bias: Tensor | None
        for name in ("weight", "bias"):
            value = nn.Parameter(torch.zeros(config.model_dim)) if config.norm_affine else None
            self.register_parameter(name, value)

    def fold(self) -> tuple[Tensor | None, Tensor | None]:
        if self.weight is None or self.bias is None:
            return None, None
        return wide(self.weight) + 1.0, wide(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.constants()
        return group_layer_norm(x, weight, bias, self.groups, self.eps)


class Linear(nn.Linear):
    def reset_parameters(self) -> None:
        initialise.he(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class MovingAverageGatedAttention(Folded):
    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.config = config
        D, S, E = config.model_dim, config.z_dim, config.value_dim
        self.timenorm = TimestepDecayNorm(config)
        self.cema = ComplexEMA(config)
        self.rmsnorm = GroupRMSNorm(config)
        self.wv = Linear(D, E)
        self.wz = Linear(D, S)
        self.wr = Linear(D, E)
        self.wh1 = Linear(D, D)
        self.wh2 = Linear(E, D, bias=False)
        self.gamma = nn.Parameter(torch.zeros(4, S))
        self.beta = nn.Parameter(torch.zeros(4, S))

    def fold(self) -> tuple[Tensor, Tensor]:
        gamma = (wide(self.gamma) + 1.0) / math.sqrt(self.config.z_head_dim)
        return gamma, wide(self.beta)

    def forward(
        self,
        x: Tensor,
        turns: Tensor,
        state: LayerState,
        position: int,
        taps: Taps | None,
        name: str,
    ) -> tuple[Tensor, LayerState]:
        """x [B, T, D] from `position` on, `turns` the rotations of its positions."""
        config = self.config
        heads = (config.num_heads, -1)

        o, mean, var = self.timenorm(x, state.timenorm_mean, state.timenorm_var, position)
        ema, h = self.cema(o, state.cema)
        mx = self.rmsnorm(ema)
        v = F.silu(self.wv(o))
        z, r, h1 = self.wz(mx), F.silu(self.wr(mx)), self.wh1(mx)

        gamma, beta = self.constants()
        normed = group_rms_norm(wide(z), None, config.num_heads, config.norm_eps)
        roles = torch.addcmul(beta, normed.unsqueeze(2), gamma).unflatten(-1, heads)
        q, k = rotary(roles[:, :, :2], turns, config.rope_heads).to(x.dtype).unbind(2)
        memory_query, memory_key = roles[:, :, 2:].to(x.dtype).unbind(2)

        values = v.unflatten(-1, heads)
        attention, read, state = attend(state, position, q, k, values, memory_query, memory_key)
        state.timenorm_mean, state.timenorm_var, state.cema = mean, var, h
        out = self.wh2(torch.addcmul(read, attention, r)) + h1 + x

        if taps is not None:
            roles = roles.flatten(-2).to(x.dtype)
            taps[f"{name}.timenorm"], taps[f"{name}.cema"], taps[f"{name}.rmsnorm"] = o, ema, mx
            taps[f"{name}.wv"], taps[f"{name}.wzrh"] = v, torch.cat([z, r, h1], -1)
            for role, tap in enumerate(("znorm_qk", "key", "memory_query", "memory_key")):
                taps[f"{name}.{tap}"] = roles[:, :, role]
            taps[f"{name}.attention"], taps[f"{name}.memory_read"] = attention, read
            taps[f"{name}.wh2"] = out
        return out, state


class NormalizedFeedForwardNetwork(nn.Module):
    def __init__(self, config: GeckoConfig, layer: int) -> None:
        super().__init__()
        D, hidden = config.model_dim, config.ffn_hidden_dim
        self.norm = GroupLayerNorm(config)
        self.fc1 = Linear(D, hidden, bias=False)
        self.fc2 = Linear(hidden, D, bias=False)
        self.fc3 = Linear(D, hidden, bias=False) if config.swiglu else None
        self.alpha: Tensor | None
        scale = nn.Parameter(torch.full((D,), 0.1 * 0.5**layer)) if config.rescale_nffn else None
        self.register_parameter("alpha", scale)

    def forward(self, x: Tensor, residual: Tensor, taps: Taps | None, name: str) -> Tensor:
        """x, residual [B, T, D]."""
        normed = self.norm(x)
        hidden = F.silu(self.fc1(normed))
        if self.fc3 is not None:
            hidden = hidden * self.fc3(normed)
        y = self.fc2(hidden)
        if self.alpha is None:
            out = residual + y
        else:  # alpha is float32 beside 16-bit matrices
            out = torch.addcmul(residual, y, self.alpha).to(y.dtype)
        if taps is not None:
            taps[f"{name}.layernorm"], taps[f"{name}.fc1"], taps[f"{name}.fc2"] = (
                normed,
                hidden,
                out,
            )
        return out


class GeckoBlock(nn.Module):
    def __init__(self, config: GeckoConfig, layer: int) -> None:
        super().__init__()
        self.name = f"layers.{layer}"
        self.two_hop_residual = config.two_hop_residual
        self.mega = MovingAverageGatedAttention(config)
        self.nffn = NormalizedFeedForwardNetwork(config, layer)

    def forward(
        self, x: Tensor, turns: Tensor, state: LayerState, position: int, taps: Taps | None
    ) -> tuple[Tensor, LayerState]:
        out, state = self.mega(x, turns, state, position, taps, self.name)
        return self.nffn(out, x if self.two_hop_residual else out, taps, self.name), state


class GeckoOutputLayer(nn.Module):
    def __init__(self, config: GeckoConfig, embed: nn.Embedding) -> None:
        super().__init__()
        self.final_norm = TimestepDecayNorm(config)
        self.output = Linear(config.model_dim, config.num_outputs, bias=False)
        if config.share_emb:
            self.output.weight = embed.weight
        else:
            initialise.gaussian(self.output.weight)


class Gecko(nn.Module):
    """A Gecko language model with initial weights; `from_tensors` gives a trained one."""

    def __init__(self, config: GeckoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        initialise.gaussian(self.embed.weight)
        self.layers = nn.ModuleList(GeckoBlock(config, i) for i in range(config.num_layers))
        self.output = GeckoOutputLayer(config, self.embed)

    @classmethod
    def from_tensors(
        cls,
        config: GeckoConfig,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> Gecko:
        """A model in evaluation mode from a reference state dict.

        With a 16-bit `dtype` only the matrices (embedding and projections, with their biases) take
        it; norms, CEMA and the attention's scales stay float32. The table `rope.freqs` is not
        used; `output.output.weight` may be absent with `share_emb`. Missing, extra or misshapen
        tensors raise RuntimeError, which lists all of them.
        """
        with torch.device("meta"):
            model = cls(config)
        tensors = {name: tensor for name, tensor in tensors.items() if name != "rope.freqs"}
        if config.share_emb and "embed.weight" in tensors:
            tensors["output.output.weight"] = tensors["embed.weight"]
        matrices = {
            f"{name}.{kind}"
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, nn.Embedding))
            for kind in ("weight", "bias")
        }
        for name, tensor in tensors.items():
            if name.endswith("prior_count"):
                tensors[name] = tensor.to(torch.int64)
            else:
                tensors[name] = tensor.to(dtype if name in matrices else state_dtype(dtype))
        model.load_state_dict(tensors, assign=True)
        if config.share_emb:
            model.output.output.weight = model.embed.weight
        return model.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the model computes in; its recurrent state is at least float32."""
        return self.embed.weight.dtype

    def start(self, batch: int) -> State:
        """The state of `batch` sequences before their first token."""
        device = self.embed.weight.device
        layers = []
        for block in cast("Iterable[GeckoBlock]", self.layers):
            layer = LayerState.start(self.config, batch, self.dtype, device)
            layer.timenorm_mean, layer.timenorm_var = block.mega.timenorm.start(
                layer.timenorm_mean, layer.timenorm_var
            )
            layers.append(layer)
        zero = torch.zeros_like(layers[0].timenorm_mean)
        mean, var = self.output.final_norm.start(zero, zero)
        return State(0, layers, mean, var)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        taps: Taps | None = None,
        last_logits_only: bool = False,
    ) -> tuple[Tensor, State]:
        """Logits of T more tokens of each sequence, and the state after them.

        tokens [B, T] integer, T >= 1, from any position; the result does not depend on how a
        sequence is cut into calls. `state` is used up (see `State`); None starts afresh. `taps`,
        when given, is filled with each operation's output, [B, T, .] under "layers.0.timenorm"
        and so on. Returns logits [B, T, V] (T = 1 with `last_logits_only`), float32 or float64.
        """
        config = self.config
        batch, length = tokens.shape
        if state is None:
            state = self.start(batch)
        position = state.position
        turns = rotation(
            position, length, config.z_head_dim, config.rope_base, self.dtype, tokens.device
        )
        x = self.embed(tokens)
        if config.scale_emb:
            x = x * math.sqrt(config.model_dim)
        if taps is not None:
            taps["embed"] = x
        layers = []
        for block, layer in zip(self.layers, state.layers, strict=True):
            x, layer = block(x, turns, layer, position, taps)
            layers.append(layer)
        normed, mean, var = self.output.final_norm(x, state.output_mean, state.output_var, position)
        logits = wide(self.output.output(normed[:, -1:] if last_logits_only else normed))
        if taps is not None:
            taps["output.timenorm"], taps["output.logits"] = normed, logits
        return logits, State(position + length, layers, mean, var)
