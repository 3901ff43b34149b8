"""What a GPU library's kernels wrote, by the names of DESIGN's operations.

Its kernels begin and end elsewhere than the operations do: a product's bias and activation belong
to the kernel that reads it, a residual is added by the norm that follows, and a decode step keeps
what lies between two products to itself.
"""

from __future__ import annotations

import numpy as np

from gecko_mlc.validate.tap import LibraryTap
from tir_kernels.gpu import cost

# Kernels whose last argument is an operation's output, and kernels with an output before the last.
_LAST = {
    "embed": "embed",
    "timenorm": "timenorm",
    "timenorm_step": "timenorm",
    "cema": "cema",
    "timenorm_cema_step": "cema",
    "rmsnorm": "rmsnorm",
    "projections_step": "wzrh",
    "attention": "attention",
    "attention_combine": "attention",
    "wh2_step": "wh2",
    "layernorm": "layernorm",
    "gate": "fc1",
    "fc1_gated": "fc1",
    "fc1_step": "fc1",
    "fc2_step": "fc2",
    "logits": "logits",
    "logits_step": "logits",
}
_LAST_BUT_ONE = {"timenorm_cema_step": "timenorm", "projections_step": "wv", "layernorm": "wh2"}
# What begins a layer, or the output layer.
_FIRST = frozenset(["timenorm_stats", "timenorm_cema_step", "timenorm_step"])


class GpuTap(LibraryTap):
    hidden_in_decode = frozenset(["rmsnorm", "query", "memory_query", "layernorm"])

    def _look(self, kernel: str, arguments: tuple) -> None:
        kernel = cost.kernel(kernel)
        if kernel == "embed":
            self._layer = -1
        self._layer += kernel in _FIRST
        if kernel == "timenorm_stats":
            self._look_at_sum(arguments)
        elif kernel == "attention_inputs":
            self._look_at_inputs(arguments)
        if kernel in _LAST_BUT_ONE:
            self._keep(_LAST_BUT_ONE[kernel], arguments[-2].numpy())
        if kernel in _LAST:
            self._keep(_LAST[kernel], arguments[-1].numpy())

    def _look_at_sum(self, arguments: tuple) -> None:
        """The residual stream after the layer before this one, [m, D]."""
        if self._layer > 0:
            dim = self._engine.config.model_dim
            outputs = [a for a in arguments[1:] if getattr(a, "ndim", 0) == 2 and a.shape[1] == dim]
            self._keep("fc2", outputs[-1].numpy(), self._layer - 1)

    def _look_at_inputs(self, arguments: tuple) -> None:
        """Raw products [m, P] and [m, E], their biases; the queries [3, m, S]."""
        config = self._engine.config
        projected, v, bias_v, bias = (np.asarray(a.numpy(), np.float64) for a in arguments[:4])
        projected += bias
        gate = slice(config.z_dim, config.z_dim + config.value_dim)
        projected[:, gate] = _silu(projected[:, gate])
        self._keep("wv", _silu(v + bias_v))
        self._keep("wzrh", projected)
        queries = arguments[-1].numpy()
        self._keep("query", np.concatenate([queries[0], queries[1]], -1))
        self._keep("memory_query", queries[2])


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))
