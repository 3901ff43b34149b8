"""Products of a decode step's few rows with the weights, bound by reading the weights once."""

from .norms import Norm, layernorm_step, norms_fused, rmsnorm_step
from .plan import Spread
from .products import fc1_step, fc2_scaled_step, fc2_step, logits_step, projections_step, wh2_step

__all__ = [
    "Norm",
    "Spread",
    "fc1_step",
    "fc2_scaled_step",
    "fc2_step",
    "layernorm_step",
    "logits_step",
    "norms_fused",
    "projections_step",
    "rmsnorm_step",
    "wh2_step",
]
