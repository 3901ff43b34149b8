"""The Gecko model as a Relax module, and the functions a compiled library offers.

``kernels`` is a back end's set of TensorIR kernels (``tir_kernels.cpu.CpuKernels``).
"""

from __future__ import annotations

from tvm.ir import IRModule
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import spec

from .kernel_call import call, call_inplace, fresh, view
from .mega import MovingAverageGatedAttention
from .nffn import NormalizedFeedForwardNetwork
from .norms import TimestepDecayNorm
from .packed_linear import PackedLinear
from .state import State, state_spec, state_tensors


class GeckoBlock(nn.Module):
    def __init__(self, config, kernels, layer: int):
        self.two_hop_residual = config.two_hop_residual
        self.mega = MovingAverageGatedAttention(config, kernels, layer)
        self.nffn = NormalizedFeedForwardNetwork(config, kernels)

    def forward(self, x: nn.Tensor, rope: nn.Tensor, state: State, batched: bool) -> nn.Tensor:
        out = self.mega(x, rope, state, batched)
        return self.nffn(out, x if self.two_hop_residual else out)


class GeckoOutputLayer(nn.Module):
    def __init__(self, config, kernels):
        self.final_norm = TimestepDecayNorm(config, kernels, config.num_layers)
        self.output = PackedLinear(kernels, config.num_outputs, config.model_dim)


class RotaryTable(nn.Module):
    def __init__(self, config):
        pairs = (config.z_head_dim + 1) // 2
        self.table = nn.Parameter([2 * config.chunk_size, pairs, 2], "float32")


class Embedding(nn.Module):
    def __init__(self, config, kernels):
        self.weight = nn.Parameter([config.vocab_size, config.model_dim], kernels.dtype)


class Gecko(nn.Module):
    """Exported functions: prefill, score, decode, commit, reset, get_slot, set_slot."""

    # Batch sizes that have a decode function of their own; without any, one serves all.
    batches: tuple[int, ...] = ()

    def __init__(self, config, kernels):
        self.config, self.kernels = config, kernels
        self.embed = Embedding(config, kernels)
        self.rope = RotaryTable(config)
        self.layers = nn.ModuleList(
            [GeckoBlock(config, kernels, layer) for layer in range(config.num_layers)]
        )
        self.output = GeckoOutputLayer(config, kernels)

    def _hidden(self, tokens: nn.Tensor, state: State, batched: bool) -> nn.Tensor:
        """Rows of the final norm; the positions move on."""
        x = call(
            self.kernels.embed(),
            "embed",
            [tokens, self.embed.weight],
            fresh([tokens.shape[0], self.config.model_dim]),
        )
        for layer in self.layers:
            x = layer(x, self.rope.table, state, batched)
        x = self.output.final_norm(x, state, batched)
        (state.position,) = call_inplace(
            self.kernels.advance(batched),
            "advance_step" if batched else "advance",
            [tokens, state.slots, state.position],
            [2],
        )
        return x

    def _logits(self, x: nn.Tensor) -> nn.Tensor:
        return call(
            self.kernels.logits(),
            "logits",
            [x, self.output.output.weight],
            fresh([x.shape[0], self.config.num_outputs]),
        )

    def prefill(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """m tokens of the sequence in slots[0], within its current chunk: last logits [1, V]."""
        state = State.unpack(slots, state)
        x = self._hidden(tokens, state, batched=False)
        last = call(self.kernels.last_row(), "last_row", [x], fresh([1, self.config.model_dim]))
        return self._logits(last), state.pack()

    def score(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """As prefill, with the logits of every position: [m, V]."""
        state = State.unpack(slots, state)
        return self._logits(self._hidden(tokens, state, batched=False)), state.pack()

    def decode(self, tokens: nn.Tensor, slots: nn.Tensor, state):
        """One token for each of B slots, each at its own position: logits [B, V]."""
        state = State.unpack(slots, state)
        return self._logits(self._hidden(tokens, state, batched=True)), state.pack()

    def commit(self, slots: nn.Tensor, state):
        """The memory's update for B slots that stand at the end of a chunk c >= 1."""
        state = State.unpack(slots, state)
        for layer in self.layers:
            layer.mega.commit(state)
        return state.pack()

    def _flat(self, state: State):
        """The state's tensors with their shape inside a slot flattened, position included."""
        yield view(state.position, [1, state.position.shape[0], 1]), 1, 1, "int32", 0
        for tensor in state_tensors(self.config, self.kernels.dtype):
            value = getattr(state, tensor.name)
            flat = view(value, [tensor.layers, value.shape[1], tensor.size])
            yield flat, tensor.layers, tensor.size, tensor.dtype, tensor.fill

    def reset(self, slots: nn.Tensor, state):
        """Slot slots[0] becomes that of an empty sequence."""
        state = State.unpack(slots, state)
        filled = []
        for flat, layers, size, dtype, fill in self._flat(state):
            kernel = self.kernels.fill_slot(layers, size, dtype, fill)
            filled += call_inplace(kernel, "fill_slot", [slots, flat], [1])
        for layer in self.layers:
            layer.mega.timenorm.reset(state)
        self.output.final_norm.reset(state)
        return (*filled, state.mean, state.var)

    def get_slot(self, slots: nn.Tensor, state):
        """A copy of slot slots[0]: one tensor [layers, size] per tensor of the state."""
        state = State.unpack(slots, state)
        return tuple(
            call(
                self.kernels.get_slot(layers, size, dtype),
                "get_slot",
                [slots, flat],
                fresh([layers, size], dtype),
            )
            for flat, layers, size, dtype, _ in self._flat(state)
        )

    def set_slot(self, slots: nn.Tensor, values, state):
        """Slot slots[0] becomes what ``get_slot`` returned."""
        state = State.unpack(slots, state)
        written = []
        for value, (flat, layers, size, dtype, _) in zip(values, self._flat(state), strict=True):
            kernel = self.kernels.set_slot(layers, size, dtype)
            written += call_inplace(kernel, "set_slot", [slots, value, flat], [2])
        return tuple(written)

    def annotate(self, module: IRModule) -> IRModule:
        """The exported functions with what their compilation needs to know beyond the graph."""
        return module

    def module_spec(self) -> dict:
        """Argument shapes of the exported functions."""
        state = state_spec(self.config, self.kernels.dtype)
        tokens = spec.Tensor(["m"], "int32")
        one, some = spec.Tensor([1], "int32"), spec.Tensor(["m"], "int32")
        saved = [spec.Tensor([1, 1], "int32")] + [
            spec.Tensor([tensor.layers, tensor.size], tensor.dtype)
            for tensor in state_tensors(self.config, self.kernels.dtype)
        ]
        packed = {"param_mode": "packed", "effect_mode": "none"}
        bare = {"param_mode": "none", "effect_mode": "none"}
        return {
            "prefill": {"tokens": tokens, "slots": one, "state": state, "$": packed},
            "score": {"tokens": tokens, "slots": one, "state": state, "$": packed},
            "decode": {"tokens": tokens, "slots": some, "state": state, "$": packed},
            "commit": {"slots": some, "state": state, "$": bare},
            "reset": {"slots": one, "state": state, "$": packed},
            "get_slot": {"slots": one, "state": state, "$": bare},
            "set_slot": {
                "slots": one,
                "values": saved,
                "state": state,
                "$": bare,
            },
        }
