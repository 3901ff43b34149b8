"""The kernels of one model on a GPU: configuration and what the GPU offers to TensorIR functions.

The counterpart of ``tir_kernels.cpu.CpuKernels`` for ``relax_model.gpu``. ``*_step`` kernels serve
one decode step of ``batch`` sequences, the others m rows of one sequence. Weights stay as the
checkpoint has them, [outputs, inputs].
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from . import (
    attention_inputs,
    cema,
    cublaslt,
    embedding,
    gate,
    matmul,
    mega_step,
    memory,
    norms,
    sampling,
    skinny,
    slots,
    timestep_norm,
)
from .attention import combine, decode, prefill
from .attention.shares import Shares
from .sm90 import attention as sm90_attention
from .sm90 import matmul as sm90_matmul

if TYPE_CHECKING:
    from gecko_mlc.config import GeckoConfig

    from .unit import GpuUnit


@dataclasses.dataclass(frozen=True)
class GpuKernels:
    """Kernels for ``config`` with weights, rings and activations of ``dtype``, within ``unit``."""

    config: GeckoConfig
    dtype: str
    unit: GpuUnit

    @property
    def projected(self) -> int:
        """Columns of the wz|wr|wh1 product: S + E + D."""
        return self.config.z_dim + self.config.value_dim + self.config.model_dim

    @property
    def _norm_groups(self) -> tuple[int, int, float]:
        c = self.config
        return c.model_dim, c.layernorm_num_groups, c.norm_eps

    @property
    def _time_norm(self) -> tuple:
        c = self.config
        return c.model_dim, c.timenorm_num_groups, self._betas, c.norm_eps, c.num_layers + 1

    @property
    def _hopper(self) -> bool:
        """Whether the tensor core instructions of sm_90a may be used."""
        return self.unit.tensor_cores == "wgmma"

    @property
    def _betas(self) -> tuple[float, float]:
        return self.config.timenorm_beta1, self.config.timenorm_beta2

    @property
    def _heads(self) -> tuple[int, int, int]:
        c = self.config
        return c.num_heads, c.z_head_dim, c.v_head_dim

    def packed_shape(self, outputs: int, inputs: int, gated: bool = False) -> list[int]:
        return [2 * outputs if gated else outputs, inputs]

    def embed(self):
        c = self.config
        scale = math.sqrt(c.model_dim) if c.scale_emb else 1.0
        return embedding.embed(c.vocab_size, c.model_dim, scale, self.dtype)

    def last_row(self):
        return embedding.last_row(self.config.model_dim, self.dtype)

    def timenorm_blocks(self, rows):
        """Blocks of time that ``timenorm_stats`` cuts rows into."""
        return (rows + timestep_norm.BLOCK - 1) // timestep_norm.BLOCK

    def timenorm_stats(self, terms: int):
        """For a residual stream of 1 to 3 terms: x, a product to add, its scale."""
        c = self.config
        return timestep_norm.stats(
            c.model_dim,
            c.timenorm_num_groups,
            self._betas,
            c.num_layers + 1,
            self.unit,
            self.dtype if terms > 1 else None,
            terms > 2,
        )

    def timenorm(self):
        return timestep_norm.apply(*self._time_norm, self.dtype, self.unit)

    def cema(self):
        c = self.config
        return cema.cema(c.model_dim, c.cema_ndim, c.num_layers, self.dtype, self.unit)

    def rmsnorm(self):
        return norms.rms_norm(*self._norm_groups, self.dtype, self.unit)

    def layernorm(self):
        return norms.layer_norm(*self._norm_groups, self.projected, self.dtype, self.unit)

    def gate(self):
        return gate.gate(self.config.ffn_hidden_dim, self.config.swiglu, self.dtype)

    def _wgmma_takes(self, inputs: int, outputs: int) -> bool:
        return self._hopper and sm90_matmul.supports(inputs, outputs, self.dtype)

    def matmul(self, inputs: int, outputs: int, out_dtype: str):
        if self._wgmma_takes(inputs, outputs):
            return sm90_matmul.matmul(inputs, outputs, self.dtype, out_dtype)
        return matmul.matmul(inputs, outputs, self.dtype, out_dtype, self.unit)

    def gated_matmul(self):
        """The product of fc1 and fc3 with its gate, or None: then ``gate`` follows ``matmul``."""
        c = self.config
        if not (c.swiglu and self._wgmma_takes(c.model_dim, 2 * c.ffn_hidden_dim)):
            return None
        return sm90_matmul.gated_matmul(c.model_dim, c.ffn_hidden_dim, self.dtype)

    def cublaslt_matmul(self, _inputs: int, _outputs: int, out_dtype: str):
        return cublaslt.cublaslt_matmul(self.dtype, out_dtype)

    def attention_inputs(self):
        c = self.config
        return attention_inputs.attention_inputs(
            *self._heads,
            c.rope_heads,
            c.model_dim,
            c.chunk_size,
            c.norm_eps,
            c.num_layers,
            self.dtype,
            self.unit,
        )

    @property
    def _hopper_attention(self) -> bool:
        _, z_head, v_head = self._heads
        chunk = self.config.chunk_size
        return self._hopper and sm90_attention.supports(z_head, v_head, chunk, self.dtype)

    def attention_weights(self):
        c = self.config
        sizes = *self._heads, c.chunk_size, c.num_layers, self.dtype
        if self._hopper_attention:
            return sm90_attention.attention_weights(*sizes)
        return prefill.attention_weights(*sizes, self.unit)

    def memory_cast(self):
        return prefill.memory_cast(*self._heads, self.config.num_layers, self.dtype, self.unit)

    def attention(self):
        c = self.config
        sizes = *self._heads, c.model_dim, c.chunk_size, c.num_layers, self.dtype
        if self._hopper_attention:
            return sm90_attention.attention(*sizes)
        return prefill.attention(*sizes, self.unit)

    def memory_levels(self):
        heads, z_head, _ = self._heads
        c = self.config
        sizes = heads, z_head, c.chunk_size, c.num_layers
        return memory.memory_levels(*sizes, self.dtype, self.unit)

    def memory_weights(self):
        c = self.config
        sizes = *self._heads, c.chunk_size, c.num_layers
        return memory.memory_weights(*sizes, self.dtype, self.unit)

    def memory_overlap(self):
        heads, z_head, _ = self._heads
        return memory.memory_overlap(heads, z_head, self.config.chunk_size, self.dtype, self.unit)

    def memory_update(self):
        c = self.config
        sizes = *self._heads, c.chunk_size, c.num_layers
        return memory.memory_update(*sizes, self.dtype, self.unit)

    def timenorm_cema_step(self, batch: int):
        c = self.config
        return mega_step.timenorm_cema_step(
            c.model_dim,
            c.timenorm_num_groups,
            c.cema_ndim,
            self._betas,
            c.norm_eps,
            c.num_layers + 1,
            c.num_layers,
            batch,
            self.dtype,
            self.unit,
        )

    def timenorm_step(self, batch: int):
        return mega_step.timenorm_step(*self._time_norm, batch, self.dtype, self.unit)

    def norms_fused(self, batch: int) -> bool:
        """Whether a step's products normalise their inputs themselves."""
        return skinny.norms_fused(batch, self._norm(centred=True), self.dtype, self.unit)

    def rmsnorm_step(self, batch: int):
        return skinny.rmsnorm_step(batch, self._norm(centred=False), self.dtype, self.unit)

    def layernorm_step(self, batch: int):
        return skinny.layernorm_step(batch, self._norm(centred=True), self.dtype, self.unit)

    def projections_step(self, batch: int):
        c = self.config
        norm = self._norm(centred=False)
        return skinny.projections_step(batch, norm, c.value_dim, c.z_dim, self.dtype, self.unit)

    def attention_partials(self, batch: int) -> tuple[list[int], list[int]]:
        """Shapes of the partial results of ``attention_step``, and of their scales."""
        c = self.config
        rows = Shares(batch, *self._heads, c.chunk_size, self.dtype, self.unit).rows
        return [batch, c.num_heads, rows, c.v_head_dim], [batch, c.num_heads, rows, 2]

    def attention_step(self, batch: int):
        c = self.config
        return decode.attention_step(
            batch,
            *self._heads,
            c.rope_heads,
            c.model_dim,
            c.chunk_size,
            c.norm_eps,
            c.num_layers,
            self.dtype,
            self.unit,
        )

    def attention_combine(self, batch: int):
        c = self.config
        return combine.attention_combine(
            batch, *self._heads, c.model_dim, c.chunk_size, self.dtype, self.unit
        )

    def wh2_step(self, batch: int):
        c = self.config
        return skinny.wh2_step(batch, c.value_dim, c.model_dim, c.z_dim, self.dtype, self.unit)

    def fc1_step(self, batch: int):
        c = self.config
        norm = self._norm(centred=True)
        return skinny.fc1_step(batch, norm, c.ffn_hidden_dim, c.swiglu, self.dtype, self.unit)

    def fc2_step(self, batch: int):
        c = self.config
        kernel = skinny.fc2_scaled_step if c.rescale_nffn else skinny.fc2_step
        return kernel(batch, c.ffn_hidden_dim, c.model_dim, self.dtype, self.unit)

    def logits_step(self, batch: int):
        c = self.config
        return skinny.logits_step(batch, c.model_dim, c.num_outputs, self.dtype, self.unit)

    def sample(self, batch: int):
        return sampling.sample(batch, self.config.num_outputs, self.unit)

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

    def _norm(self, centred: bool):
        return skinny.Norm(*self._norm_groups, centred)
