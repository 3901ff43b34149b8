"""The model's functions on a GPU.

A product is a plain matrix product (the back end's own, or a library's), and what lies between two
products is fused into their neighbours: biases, activations and residuals never take a pass of
their own. A decode step goes further: one function for each batch size with fixed shapes, whose
kernels stream each weight once and do the small operations in passing, so that the whole step can
be captured as one CUDA graph. Activations have the model's dtype, the residual stream float32.
"""

from __future__ import annotations

import dataclasses

from tvm.ir import IRModule
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec

from .gecko import Gecko, GeckoBlock
from .kernel_call import call, call_inplace, fresh, view
from .norms import TimestepDecayNorm
from .state import State, state_spec


@dataclasses.dataclass(frozen=True)
class _Residual:
    """A residual stream x [m, D] to which (alpha *) delta [m, D] has still to be added."""

    x: nn.Tensor
    delta: nn.Tensor | None = None
    alpha: nn.Tensor | None = None

    @property
    def terms(self) -> list[nn.Tensor]:
        return [term for term in (self.x, self.delta, self.alpha) if term is not None]


class GpuGecko(Gecko):
    """Exported functions: prefill, score, commit, reset, get_slot, set_slot as in ``Gecko``;
    decode_B and step_B for each batch size B; on NVIDIA's GPUs prefill_cublaslt and score_cublaslt.
    """

    # A batch in between runs in the next larger one with idle rows.
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __init__(self, config, kernels):
        super().__init__(config, kernels)
        for batch in self.batches:
            setattr(self, f"decode_{batch}", self.decode)
            setattr(self, f"step_{batch}", self.step)

    def prefill(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """m tokens of the sequence in slots[0], within its current chunk: last logits [1, V]."""
        return self._prefill(tokens, slots, state, self.kernels.matmul)

    def prefill_cublaslt(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """As prefill, with cuBLASLt's products."""
        return self._prefill(tokens, slots, state, self.kernels.cublaslt_matmul)

    def score(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """As prefill, with the logits of every position: [m, V]."""
        return self._score(tokens, slots, state, self.kernels.matmul)

    def score_cublaslt(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """As score, with cuBLASLt's products."""
        return self._score(tokens, slots, state, self.kernels.cublaslt_matmul)

    def decode(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """One token for each of B slots, each at its own position; slot -1 is an idle row.

        Logits [B, V].
        """
        state = State.unpack(slots, state)
        rows = self._rows_step(tokens, state)
        arguments = [rows, self.output.output.weight]
        logits = fresh([tokens.shape[0], self.config.num_outputs])
        kernel = self.kernels.logits_step(tokens.shape[0])
        return call(kernel, "logits_step", arguments, logits), state.pack()

    def step(
        self, tokens: nn.Tensor, slots: nn.Tensor, sampling: nn.Tensor, logits: nn.Tensor, state
    ):
        """As decode, with ``logits`` filled in place and ``tokens`` replaced by sampled ones.

        ``sampling`` [B, 3] float32: temperature, top_p and a uniform random number of each row.
        Nothing is allocated and every address is the caller's, so that the step can be captured.
        """
        state = State.unpack(slots, state)
        batch = tokens.shape[0]
        rows = self._rows_step(tokens, state)
        (logits,) = call_inplace(
            self.kernels.logits_step(batch),
            "logits_step",
            [rows, self.output.output.weight, logits],
            [2],
        )
        (tokens,) = call_inplace(
            self.kernels.sample(batch), "sample", [logits, sampling, tokens], [2]
        )
        # A result of the captured region itself would be lifted out of the function with it.
        return view(tokens, [batch])

    def commit(self, slots: nn.Tensor, state):
        """The memory's update for B slots that stand at the end of a chunk c >= 1."""
        state = State.unpack(slots, state)
        for layer in self.layers:
            self._commit(layer.mega, state)
        return state.pack()

    def _embed(self, tokens: nn.Tensor) -> nn.Tensor:
        rows = fresh([tokens.shape[0], self.config.model_dim])
        return call(self.kernels.embed(), "embed", [tokens, self.embed.weight], rows)

    # Prefill and score: m rows of one sequence.

    def _prefill(self, tokens, slots, state, matmul):
        state = State.unpack(slots, state)
        rows = self._rows(tokens, state, matmul)
        last = fresh([1, self.config.model_dim], self.kernels.dtype)
        row = call(self.kernels.last_row(), "last_row", [rows], last)
        logits = self._product(
            self.kernels.matmul, "logits", row, self.output.output.weight, "float32"
        )
        return logits, state.pack()

    def _score(self, tokens, slots, state, matmul):
        state = State.unpack(slots, state)
        rows = self._rows(tokens, state, matmul)
        logits = self._product(matmul, "logits", rows, self.output.output.weight, "float32")
        return logits, state.pack()

    def _rows(self, tokens: nn.Tensor, state: State, matmul) -> nn.Tensor:
        """Rows of the final norm; the positions move on."""
        residual = _Residual(self._embed(tokens))
        for layer in self.layers:
            residual = self._block(layer, residual, state, matmul)
        _, rows = self._timenorm(self.output.final_norm, residual, state)
        (state.position,) = call_inplace(
            self.kernels.advance(False), "advance", [tokens, state.slots, state.position], [2]
        )
        return rows

    def _product(self, matmul, name: str, a: nn.Tensor, weight: nn.Tensor, dtype: str = ""):
        """a [m, K] times weight [N, K] transposed: [m, N]."""
        outputs, inputs = weight.shape
        dtype = dtype or self.kernels.dtype
        kernel = matmul(inputs, outputs, dtype).with_attr("op", name)
        return call(kernel, name, [a, weight], fresh([a.shape[0], outputs], dtype))

    def _timenorm(self, norm: TimestepDecayNorm, residual: _Residual, state: State):
        """The residual stream summed up, [m, D] float32, and its norm."""
        kernels, groups = self.kernels, self.config.timenorm_num_groups
        x, rows = residual.x, residual.x.shape[0]
        outputs = [fresh([2, groups, rows]), fresh([2, groups, kernels.timenorm_blocks(rows)])]
        if residual.delta is not None:
            outputs.insert(0, fresh(x.shape))
        *summed, moments, added = call(
            kernels.timenorm_stats(len(residual.terms)),
            "timenorm_stats",
            [*residual.terms, state.slots, state.mean, state.var, norm.index],
            *outputs,
        )
        x = summed[0] if summed else x
        state.mean, state.var, o = call_inplace(
            kernels.timenorm(),
            "timenorm",
            [
                x,
                moments,
                added,
                norm.weight,
                norm.bias,
                norm.prior_count,
                state.slots,
                state.position,
                state.mean,
                state.var,
                norm.index,
            ],
            [8, 9],
            fresh(x.shape, kernels.dtype),
        )
        return x, o

    def _cema(self, cema, x: nn.Tensor, state: State) -> nn.Tensor:
        state.cema, y = call_inplace(
            self.kernels.cema(),
            "cema",
            [x, cema.p, cema.q, cema.gamma, state.slots, state.cema, cema.layer],
            [5],
            fresh(x.shape, self.kernels.dtype),
        )
        return y

    def _block(self, block: GeckoBlock, residual: _Residual, state: State, matmul) -> _Residual:
        kernels, config, mega, nffn = self.kernels, self.config, block.mega, block.nffn
        dtype = kernels.dtype
        x, o = self._timenorm(mega.timenorm, residual, state)
        rows = x.shape[0]
        y = self._cema(mega.cema, o, state)
        mx = call(kernels.rmsnorm(), "rmsnorm", [y, mega.rmsnorm.weight], fresh(x.shape, dtype))
        v = self._product(matmul, "wv", o, mega.wv.weight)
        projected = self._product(matmul, "wzrh", mx, mega.wzrh.weight)
        state.keys, state.values, state.memory_keys, queries = call_inplace(
            kernels.attention_inputs(),
            "attention_inputs",
            [
                projected,
                v,
                mega.wv.bias,
                mega.wzrh.bias,
                mega.gamma,
                mega.beta,
                self.rope.table,
                state.slots,
                state.position,
                state.keys,
                state.values,
                state.memory_keys,
                mega.layer,
            ],
            [9, 10, 11],
            fresh([3, rows, config.z_dim], dtype),
        )
        gated = self._attention(mega, queries, projected, state)
        h2 = self._product(matmul, "wh2", gated, mega.wh2.weight)
        out, normed = call(
            kernels.layernorm(),
            "layernorm",
            [h2, projected, mega.wzrh.bias, x, nffn.norm.weight, nffn.norm.bias],
            fresh(x.shape),
            fresh(x.shape, dtype),
        )
        hidden = self._hidden(nffn, normed, matmul)
        delta = self._product(matmul, "fc2", hidden, nffn.fc2.weight)
        return _Residual(x if block.two_hop_residual else out, delta, nffn.alpha)

    def _hidden(self, nffn, normed: nn.Tensor, matmul) -> nn.Tensor:
        """The feed-forward network's gated hidden layer, [m, F]."""
        kernels = self.kernels
        hidden = fresh([normed.shape[0], self.config.ffn_hidden_dim], kernels.dtype)
        gated = kernels.gated_matmul() if matmul == kernels.matmul else None
        if gated is not None:
            return call(gated, "fc1_gated", [normed, nffn.fc1.weight], hidden)
        raw = self._product(matmul, "fc1", normed, nffn.fc1.weight)
        return call(kernels.gate(), "gate", [raw], hidden)

    def _attention(self, mega, queries: nn.Tensor, projected: nn.Tensor, state: State):
        """Attention times its gate, plus the memory's reading: [m, E]."""
        kernels, config = self.kernels, self.config
        rows, heads = projected.shape[0], config.num_heads
        weights = call(
            kernels.attention_weights(),
            "attention_weights",
            [queries, state.slots, state.position, state.keys, mega.layer],
            fresh([heads, rows, 2 * config.chunk_size], kernels.dtype),
        )
        memory = call(
            kernels.memory_cast(),
            "memory_cast",
            [state.slots, state.memory, mega.layer],
            fresh([heads, config.z_head_dim, config.v_head_dim], kernels.dtype),
        )
        return call(
            kernels.attention(),
            "attention",
            [
                weights,
                queries,
                state.values,
                memory,
                projected,
                mega.wzrh.bias,
                state.slots,
                state.position,
                mega.layer,
            ],
            fresh([rows, config.value_dim], kernels.dtype),
        )

    def _commit(self, mega, state: State) -> None:
        """The memory's update for the slots of the call."""
        kernels, config, layer = self.kernels, self.config, mega.layer
        slots, position, dtype = state.slots, state.position, kernels.dtype
        batch, heads, chunk = slots.shape[0], config.num_heads, config.chunk_size
        z_head, v_head = config.z_head_dim, config.v_head_dim
        state.log_norm, levels = call_inplace(
            kernels.memory_levels(),
            "memory_levels",
            [slots, position, state.memory_keys, state.log_norm, layer],
            [3],
            fresh([batch, 3, config.z_dim]),
        )
        weights, features, before = call(
            kernels.memory_weights(),
            "memory_weights",
            [slots, position, state.memory_keys, state.memory, levels, layer],
            fresh([batch, heads, z_head, chunk], dtype),
            fresh([batch, heads, chunk, z_head], dtype),
            fresh([batch, heads, z_head, v_head], dtype),
        )
        overlap = call(
            kernels.memory_overlap(),
            "memory_overlap",
            [slots, weights, features],
            fresh([batch, heads, z_head, z_head], dtype),
        )
        (state.memory,) = call_inplace(
            kernels.memory_update(),
            "memory_update",
            [
                slots,
                position,
                weights,
                overlap,
                state.values,
                before,
                levels,
                state.memory,
                layer,
            ],
            [7],
        )

    # A decode step: one row of each of B sequences.

    def _rows_step(self, tokens: nn.Tensor, state: State) -> nn.Tensor:
        """Rows of the final norm; the positions move on."""
        kernels, norm = self.kernels, self.output.final_norm
        batch = tokens.shape[0]
        x = self._embed(tokens)
        for layer in self.layers:
            x = self._block_step(layer, x, state)
        state.mean, state.var, rows = call_inplace(
            kernels.timenorm_step(batch),
            "timenorm_step",
            [
                x,
                norm.weight,
                norm.bias,
                norm.prior_count,
                state.slots,
                state.position,
                state.mean,
                state.var,
                norm.index,
            ],
            [6, 7],
            fresh(x.shape, kernels.dtype),
        )
        (state.position,) = call_inplace(
            kernels.advance(True), "advance_step", [tokens, state.slots, state.position], [2]
        )
        return rows

    def _block_step(self, block: GeckoBlock, x: nn.Tensor, state: State) -> nn.Tensor:
        kernels, config, mega, nffn = self.kernels, self.config, block.mega, block.nffn
        batch, dtype = x.shape[0], kernels.dtype
        norm, cema = mega.timenorm, mega.cema
        state.mean, state.var, state.cema, o, y = call_inplace(
            kernels.timenorm_cema_step(batch),
            "timenorm_cema_step",
            [
                x,
                norm.weight,
                norm.bias,
                norm.prior_count,
                cema.p,
                cema.q,
                cema.gamma,
                state.slots,
                state.position,
                state.mean,
                state.var,
                state.cema,
                norm.index,
                cema.layer,
            ],
            [9, 10, 11],
            fresh(x.shape, dtype),
            fresh(x.shape),
        )
        if not kernels.norms_fused(batch):
            arguments = [y, mega.rmsnorm.weight]
            y = call(kernels.rmsnorm_step(batch), "rmsnorm_step", arguments, fresh(x.shape, dtype))
        v, projected = call(
            kernels.projections_step(batch),
            "projections_step",
            [
                o,
                y,
                mega.rmsnorm.weight,
                mega.wv.weight,
                mega.wv.bias,
                mega.wzrh.weight,
                mega.wzrh.bias,
            ],
            fresh([batch, config.value_dim]),
            fresh([batch, kernels.projected]),
        )
        gated = self._attention_step(mega, v, projected, state)
        out = call(
            kernels.wh2_step(batch),
            "wh2_step",
            [gated, mega.wh2.weight, projected, x],
            fresh(x.shape),
        )
        normed = out
        if not kernels.norms_fused(batch):
            arguments = [out, nffn.norm.weight, nffn.norm.bias]
            normed = call(
                kernels.layernorm_step(batch), "layernorm_step", arguments, fresh(x.shape, dtype)
            )
        hidden = call(
            kernels.fc1_step(batch),
            "fc1_step",
            [normed, nffn.norm.weight, nffn.norm.bias, nffn.fc1.weight],
            fresh([batch, config.ffn_hidden_dim], dtype),
        )
        residual = _Residual(x if block.two_hop_residual else out, alpha=nffn.alpha)
        return call(
            kernels.fc2_step(batch),
            "fc2_step",
            [hidden, nffn.fc2.weight, *residual.terms],
            fresh(x.shape),
        )

    def _attention_step(self, mega, v: nn.Tensor, projected: nn.Tensor, state: State):
        """Attention of a step times its gate, plus the memory's reading: [B, E]."""
        kernels, config, batch = self.kernels, self.config, v.shape[0]
        partial, scale = kernels.attention_partials(batch)
        state.keys, state.values, state.memory_keys, partial, scale = call_inplace(
            kernels.attention_step(batch),
            "attention_step",
            [
                projected,
                v,
                mega.gamma,
                mega.beta,
                self.rope.table,
                state.slots,
                state.position,
                state.keys,
                state.values,
                state.memory_keys,
                state.memory,
                mega.layer,
            ],
            [7, 8, 9],
            fresh(partial),
            fresh(scale),
        )
        return call(
            kernels.attention_combine(batch),
            "attention_combine",
            [partial, scale, projected],
            fresh([batch, config.value_dim], kernels.dtype),
        )

    def annotate(self, module: IRModule) -> IRModule:
        """The exported functions with what memory planning and graph capture need to know."""
        for name in self.module_spec():
            function = module[name].without_attr("num_input")
            if name.startswith("step_"):
                # Every argument of a step is at the same address each time.
                function = function.with_attr("num_input", 0)
            elif name.startswith(("prefill", "score")):
                bounds = {"m": self.config.chunk_size}
                function = function.with_attr("tir_var_upper_bound", bounds)
            module[name] = function
        return module

    def module_spec(self) -> dict:
        """Argument shapes of the exported functions."""
        shared = super().module_spec()
        del shared["decode"]
        state = state_spec(self.config, self.kernels.dtype)
        if self.kernels.unit.ptx:
            for name in ("prefill", "score"):
                # Each function uses its description up.
                shared[f"{name}_cublaslt"] = dict(shared[name])
        for batch in self.batches:
            rows = spec.Tensor([batch], "int32")
            packed = {"param_mode": "packed", "effect_mode": "none"}
            shared[f"decode_{batch}"] = {
                "tokens": rows,
                "slots": rows,
                "state": state,
                "$": packed,
            }
            shared[f"step_{batch}"] = {
                "tokens": rows,
                "slots": rows,
                "sampling": spec.Tensor([batch, 3], "float32"),
                "logits": spec.Tensor([batch, self.config.num_outputs], "float32"),
                "state": state,
                "$": packed,
            }
        return shared
