"""A library for Hopper on the emulated device: TMA, wgmma, clusters, dependent launches.

Every order of threads is as good as another, copies and products may end as late as they are waited
for, and what kernels before have written cannot be seen before a dependent launch waits.
"""

from __future__ import annotations

from collections.abc import Iterator

import cuda_emulator
import numpy as np
import pytest
import torch
from emulated_cuda import build_emulated
from reference_streams import distance, float64_logits, float64_model

from gecko_mlc.checkpoint import random_checkpoint
from gecko_mlc.config import GeckoConfig
from gecko_mlc.reference import Gecko
from gecko_mlc.runtime.engine import Engine
from tir_kernels.gpu.kernels import GpuKernels
from tir_kernels.gpu.sm90 import attention
from tir_kernels.gpu.unit import SM90A

# The least sizes that Hopper's own products and attention take.
CONFIG = GeckoConfig(
    num_layers=2,
    model_dim=128,
    z_dim=128,
    value_dim=128,
    num_heads=2,
    ffn_hidden_dim=64,
    vocab_size=256,
    cema_ndim=16,
    chunk_size=128,
    timenorm_num_groups=16,
)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    checkpoint = random_checkpoint(CONFIG, seed=3)
    return {name: checkpoint[name] for name in checkpoint}


@pytest.fixture(scope="module")
def engine(
    tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("hopper") / "model"
    built = build_emulated(folder, CONFIG, tensors, "q0bf16", "cuda-sm90a")
    cuda_emulator.set_capability(9, 0)
    yield Engine(*built, device="cuda", slots=2)
    cuda_emulator.set_capability(8, 0)


def test_the_sizes_take_the_kernels_for_hopper() -> None:
    kernels = GpuKernels(CONFIG, "bfloat16", SM90A)
    assert kernels.attention().same_as(
        attention.attention(2, 64, 64, 128, 128, CONFIG.num_layers, "bfloat16")
    )
    assert kernels.gated_matmul() is not None


@pytest.mark.parametrize("order", cuda_emulator.ORDERS)
def test_a_stream(engine: Engine, tensors: dict[str, np.ndarray], order: str) -> None:
    """Two chunks and more at once, then single tokens: no worse than PyTorch in bfloat16."""
    tokens = np.random.default_rng(5).integers(0, 256, 2 * CONFIG.chunk_size + 9)
    wanted, _ = float64_logits(float64_model(CONFIG, tensors), tokens)
    named = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    with torch.inference_mode():
        logits, _ = Gecko.from_tensors(CONFIG, named, torch.bfloat16)(
            torch.from_numpy(tokens)[None]
        )
    rounded = distance(logits[0].double().numpy(), wanted)
    read = len(tokens) - 4
    with cuda_emulator.thread_order(order), engine.new_sequence() as sequence:
        found = [sequence.score(tokens[:read])]
        found += [engine.decode([sequence], [int(token)]) for token in tokens[read:]]
    assert distance(np.concatenate(found), wanted) < 1.5 * rounded
