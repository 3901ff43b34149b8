"""Every kernel of a model, for targets with subgroups of a warp, of 8, and with none."""

from __future__ import annotations

import pytest
from small_kernels import validate

from gecko_mlc.compile.gpu_targets import VulkanTarget
from gecko_mlc.compile.library import compile_library
from gecko_mlc.compile.targets import resolve
from gecko_mlc.config import GeckoConfig
from gecko_mlc.vulkan import build
from gecko_mlc.vulkan.kernel import Kernel
from relax_model.gpu import GpuGecko


@pytest.mark.parametrize("quantization", ["q0f32", "q0f16", "q0bf16"])
@pytest.mark.parametrize("name", ["vulkan", "vulkan-lavapipe", "vulkan-nvidia"])
def test_spirv_val_accepts_every_kernel(name, quantization, golden, tmp_path, monkeypatch):
    kernels: list[Kernel] = []
    compile_kernel = build.compile_kernel

    def collect(function, limits) -> Kernel:
        kernels.append(compile_kernel(function, limits))
        return kernels[-1]

    monkeypatch.setattr(build, "compile_kernel", collect)
    monkeypatch.setattr(GpuGecko, "batches", (1, 2))
    target = resolve(name)
    assert isinstance(target, VulkanTarget)
    config = GeckoConfig.from_file(golden / "config_tiny.json")
    compile_library(config, quantization, target, tmp_path / "model.so")
    assert len(kernels) > 50
    validate(*kernels)
    assert max(kernel.threads[0] for kernel in kernels) <= target.threads
    assert max(kernel.shared for kernel in kernels) <= target.shared
    assert {kernel.subgroup for kernel in kernels} <= {0, target.subgroup}
    assert any(kernel.subgroup for kernel in kernels) == (target.subgroup > 0)
