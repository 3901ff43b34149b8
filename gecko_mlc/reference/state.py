"""What a sequence leaves behind: the constant-size state between two calls of the model."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference.ops import state_dtype


@dataclasses.dataclass
class LayerState:
    """One layer's state, for B sequences at the same position.

    The windows hold two chunks in order: rows 0 .. C-1 the chunk before, rows C .. 2C-1 the chunk
    of the next position, valid up to it. Keys are rotated by their absolute position.
    """

    timenorm_mean: Tensor  # [B, G] state dtype, without bias correction
    timenorm_var: Tensor  # [B, G]
    cema: Tensor  # [B, D, N] complex; torch.view_as_real gives (re, im)
    key: Tensor  # [B, 2C, H, zh] model dtype
    value: Tensor  # [B, 2C, H, vh]
    memory_key: Tensor  # [B, 2C, H, zh]
    memory: Tensor  # [B, H, zh, vh] state dtype
    log_norm: Tensor  # [B, H, zh]

    @classmethod
    def start(
        cls, config: GeckoConfig, batch: int, dtype: torch.dtype, device: torch.device
    ) -> LayerState:
        """Nothing seen yet; the layer fills the norm's averages in from its priors."""
        kept = state_dtype(dtype)
        heads, window = config.num_heads, 2 * config.chunk_size
        groups, zh, vh = config.timenorm_num_groups, config.z_head_dim, config.v_head_dim

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        return cls(
            timenorm_mean=zeros(groups, dtype=kept),
            timenorm_var=zeros(groups, dtype=kept),
            cema=zeros(config.model_dim, config.cema_ndim, dtype=kept.to_complex()),
            key=zeros(window, heads, zh, dtype=dtype),
            value=zeros(window, heads, vh, dtype=dtype),
            memory_key=zeros(window, heads, zh, dtype=dtype),
            memory=zeros(heads, zh, vh, dtype=kept),
            log_norm=zeros(heads, zh, dtype=kept).fill_(-math.inf),
        )

    def clone(self) -> LayerState:
        return LayerState(*(getattr(self, f.name).clone() for f in dataclasses.fields(self)))


@dataclasses.dataclass
class State:
    """The whole model's state. A call uses it up; `clone` it to go on from it twice."""

    position: int  # tokens seen
    layers: list[LayerState]
    output_mean: Tensor  # [B, G] of the final norm
    output_var: Tensor  # [B, G]

    def clone(self) -> State:
        return State(
            self.position,
            [layer.clone() for layer in self.layers],
            self.output_mean.clone(),
            self.output_var.clone(),
        )
