"""The state of every sequence: one set of tensors for the whole model, a slot per sequence."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tvm.relax.frontend.nn import spec

if TYPE_CHECKING:
    from tvm.relax.frontend import nn

    from gecko_mlc.config import GeckoConfig


@dataclasses.dataclass(frozen=True)
class StateTensor:
    """One tensor of the state: ``[layers, slots, *shape]``; ``fill`` is its value at a start."""

    name: str
    layers: int
    shape: tuple[int, ...]
    dtype: str
    fill: float = 0.0

    @property
    def size(self) -> int:
        """Elements of one layer of one slot."""
        return math.prod(self.shape)

    def with_slots(self, slots) -> list:
        return [self.layers, slots, *self.shape]


def state_tensors(config: GeckoConfig, dtype: str) -> list[StateTensor]:
    """What ``State`` holds, in its order, except the position ([slots] int32)."""
    layers, ring = config.num_layers, 2 * config.chunk_size
    heads, z_head, v_head = config.num_heads, config.z_head_dim, config.v_head_dim
    groups = (config.timenorm_num_groups,)
    return [
        StateTensor("keys", layers, (ring, config.z_dim), dtype),
        StateTensor("values", layers, (ring, config.value_dim), dtype),
        StateTensor("memory_keys", layers, (ring, config.z_dim), dtype),
        StateTensor("memory", layers, (heads, z_head, v_head), "float32"),
        StateTensor("log_norm", layers, (heads, z_head), "float32", fill=-math.inf),
        StateTensor("mean", layers + 1, groups, "float32"),
        StateTensor("var", layers + 1, groups, "float32"),
        StateTensor("cema", layers, (config.model_dim, config.cema_ndim, 2), "float32"),
    ]


@dataclasses.dataclass
class State:
    """The state's tensors inside a function; in-place kernels replace them by their results.

    ``slots`` [B] int32 lists the slots the call works on.
    """

    slots: nn.Tensor
    position: nn.Tensor
    keys: nn.Tensor
    values: nn.Tensor
    memory_keys: nn.Tensor
    memory: nn.Tensor
    log_norm: nn.Tensor
    mean: nn.Tensor
    var: nn.Tensor
    cema: nn.Tensor

    @classmethod
    def unpack(cls, slots: nn.Tensor, tensors) -> State:
        return cls(slots, *tensors)

    def pack(self) -> tuple[nn.Tensor, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self)[1:])


def state_spec(config: GeckoConfig, dtype: str) -> list[spec.Tensor]:
    """The state as an argument of an exported function: position, then ``state_tensors``."""
    tensors = [
        spec.Tensor(tensor.with_slots("num_slots"), tensor.dtype)
        for tensor in state_tensors(config, dtype)
    ]
    return [spec.Tensor(["num_slots"], "int32"), *tensors]
