"""The kernels of one model on a CPU: configuration and vector unit to TensorIR functions.

A back end of the model is a class with these names; ``relax_model`` asks for nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from . import (
    attention,
    attention_inputs,
    cema,
    embedding,
    linear,
    memory,
    norms,
    slots,
    timestep_norm,
)
from .vector_unit import VectorUnit

if TYPE_CHECKING:
    from gecko_mlc.config import GeckoConfig


@dataclasses.dataclass(frozen=True)
class CpuKernels:
    """Kernels for ``config`` with weights and rings of ``dtype``, scheduled for ``unit``.

    ``cores`` is how many cores one decode step should keep busy; it runs on any number.

    ``batched`` kernels advance each of B slots by one step; the others advance one slot by m.
    """

    config: GeckoConfig
    dtype: str
    unit: VectorUnit
    cores: int = 1

    @property
    def _betas(self) -> tuple[float, float]:
        return self.config.timenorm_beta1, self.config.timenorm_beta2

    @property
    def projected(self) -> int:
        """Columns of the wz|wr|wh1 product: S + E + D."""
        return self.config.z_dim + self.config.value_dim + self.config.model_dim

    def packed_shape(self, outputs: int, inputs: int, gated: bool = False) -> list[int]:
        """Shape of a weight [outputs, inputs] ([2 * outputs, inputs] when gated) as packed."""
        return [linear.num_panels(outputs, self.unit, gated), inputs, self.unit.panel]

    def pack(self, gated: bool):
        return linear.pack(self.dtype, self.unit, gated)

    def embed(self):
        c = self.config
        scale = math.sqrt(c.model_dim) if c.scale_emb else 1.0
        return embedding.embed(c.vocab_size, c.model_dim, scale, self.dtype, self.unit)

    def last_row(self):
        return embedding.last_row(self.config.model_dim)

    def timenorm(self, batched: bool):
        c = self.config
        args = c.model_dim, c.timenorm_num_groups, self._betas, c.norm_eps
        if batched:
            return timestep_norm.timestep_norm_decode(*args, c.num_layers + 1, self.unit)
        return timestep_norm.timestep_norm_prefill(*args, c.chunk_size, c.num_layers + 1, self.unit)

    def cema(self, batched: bool):
        c = self.config
        kernel = cema.cema_decode if batched else cema.cema_prefill
        return kernel(c.model_dim, c.cema_ndim, c.num_layers, self.unit)

    def rmsnorm(self):
        c = self.config
        return norms.rms_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, self.unit)

    def layernorm(self):
        c = self.config
        return norms.layer_norm(c.model_dim, c.layernorm_num_groups, c.norm_eps, self.unit)

    def wv(self):
        c = self.config
        return linear.linear_bias_silu(
            c.model_dim, c.value_dim, (0, c.value_dim), self.dtype, self.unit
        )

    def wzrh(self):
        c = self.config
        gates = c.z_dim, c.z_dim + c.value_dim
        return linear.linear_bias_silu(c.model_dim, self.projected, gates, self.dtype, self.unit)

    def attention_inputs(self, batched: bool):
        c = self.config
        return attention_inputs.attention_inputs(
            c.num_heads,
            c.z_head_dim,
            c.v_head_dim,
            c.rope_heads,
            c.model_dim,
            c.chunk_size,
            c.norm_eps,
            c.num_layers,
            self.dtype,
            batched,
            self.unit,
        )

    def attention(self, batched: bool):
        c = self.config
        shape = (
            c.num_heads,
            c.z_head_dim,
            c.v_head_dim,
            c.model_dim,
            c.chunk_size,
            c.num_layers,
            self.dtype,
        )
        if batched:
            splits = -(-self.cores // c.num_heads)
            return attention.attention_decode(*shape, splits, self.unit)
        return attention.attention_prefill(*shape, self.unit)

    def memory_commit(self):
        c = self.config
        return memory.memory_commit(
            c.num_heads,
            c.z_head_dim,
            c.v_head_dim,
            c.chunk_size,
            c.num_layers,
            self.dtype,
            self.unit,
        )

    def wh2(self):
        c = self.config
        return linear.linear_block_output(
            c.value_dim,
            c.model_dim,
            c.z_dim + c.value_dim,
            self.projected,
            self.dtype,
            self.unit,
        )

    def fc1(self):
        c = self.config
        kernel = linear.linear_swiglu if c.swiglu else linear.linear_silu
        return kernel(c.model_dim, c.ffn_hidden_dim, self.dtype, self.unit)

    def fc2(self):
        c = self.config
        kernel = linear.linear_scaled_residual if c.rescale_nffn else linear.linear_residual
        return kernel(c.ffn_hidden_dim, c.model_dim, self.dtype, self.unit)

    def logits(self):
        c = self.config
        return linear.linear(c.model_dim, c.num_outputs, self.dtype, self.unit)

    def advance(self, batched: bool):
        return slots.advance(batched)

    def get_slot(self, layers: int, size: int, dtype: str):
        return slots.get_slot(layers, size, dtype)

    def set_slot(self, layers: int, size: int, dtype: str):
        return slots.set_slot(layers, size, dtype)

    def fill_slot(self, layers: int, size: int, dtype: str, value: float):
        return slots.fill_slot(layers, size, dtype, value)

    def fill_slot_norm(self):
        return slots.fill_slot_norm(self.config.num_layers + 1, self.config.timenorm_num_groups)
