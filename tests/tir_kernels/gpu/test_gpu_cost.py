"""Costs of the GPU's kernels against those of the operations they are made of."""

from __future__ import annotations

import pytest

from gecko_mlc.checkpoint.mapping import parameters
from gecko_mlc.config import GeckoConfig
from tir_kernels import cost
from tir_kernels.cost import Cost, Span, Work
from tir_kernels.gpu import cost as gpu_cost


def total(costs: dict[str, Cost]) -> Cost:
    return sum(costs.values(), Cost())


def work(itemsize: int, *spans: Span, preset: str = "7b") -> Work:
    return Work(GeckoConfig.preset(preset), itemsize, spans, len(spans))


@pytest.mark.parametrize("quantization, itemsize", [("q0f32", 4), ("q0bf16", 2)])
@pytest.mark.parametrize("preset", ["tiny", "small", "7b"])
def test_a_step_reads_every_weight_once(preset: str, quantization: str, itemsize: int) -> None:
    """But of the embedding and of the rotary table the rows it needs, and no priors."""
    one = work(itemsize, Span(12345), preset=preset)
    wanted = one.config.model_dim * itemsize
    wanted += 2 * 4 * one.config.z_head_dim * one.config.num_layers
    for parameter in parameters(one.config, quantization):
        if parameter.name not in ("embed.weight", "rope.table") and "prior" not in parameter.name:
            wanted += parameter.nbytes
    assert total(gpu_cost.decode(one)).weights == wanted


@pytest.mark.parametrize("spans", [(Span(5000),), (Span(5), Span(4096), Span(1_000_000))])
def test_a_step_fuses_what_the_operations_do(spans: tuple[Span, ...]) -> None:
    step = work(2, *spans)
    plain, fused = cost.forward(step), gpu_cost.decode(step)
    del plain["last_row"], fused["sample"]
    assert total(fused).operations == total(plain).operations
    assert total(fused).state == total(plain).state
    assert total(fused).activations < total(plain).activations


def test_a_prefill_computes_what_the_operations_do() -> None:
    """And in addition casts the memory, and adds where the CPU's products end in an addition."""
    chunk = work(2, Span(4096, 2048))
    plain, split = cost.forward(chunk), gpu_cost.prefill(chunk)
    gated = split.pop("fc1_gated")  # or the two of them apart
    apart = split["fc1"] + split["gate"]
    assert (gated.weights, gated.operations) == (apart.weights, apart.operations)
    hidden = 2048 * chunk.config.ffn_hidden_dim * chunk.config.num_layers * 2
    assert apart.activations - gated.activations == 4 * hidden
    assert total(split).operations == pytest.approx(total(plain).operations, rel=1e-3)
    for name in ("wv", "wzrh", "wh2", "fc1", "fc2"):
        assert split[name].weights == pytest.approx(plain[name].weights, rel=1e-3)
        assert split[name].operations == pytest.approx(plain[name].operations, rel=1e-2)
    attention = split["attention_weights"] + split["attention"]
    assert attention.operations == pytest.approx(plain["attention"].operations, rel=1e-2)


def test_a_commit_computes_little_more_than_the_operation() -> None:
    """The features' overlap takes the place of a prediction from the memory for every value."""
    ended = work(2, Span(6144, 0))
    plain, split = total(cost.commit(ended)), total(gpu_cost.commit(ended))
    assert split.operations < plain.operations
    assert split.state < plain.state * 1.5


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("fc1", "fc1"), ("fc12", "fc1"), ("wh2", "wh2"), ("wh21", "wh2"), ("fc2_step", "fc2_step"),
        ("fc2_step10", "fc2_step"), ("timenorm1", "timenorm"), ("rmsnorm_step2", "rmsnorm_step"),
        ("memory_levels", "memory_levels"), ("something3", "something3"), ("advance", "advance"),
    ],
)  # fmt: skip
def test_numbers_behind_a_name_are_no_part_of_it(name: str, wanted: str) -> None:
    assert gpu_cost.kernel(name) == wanted
