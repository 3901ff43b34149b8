"""Every kernel of a model within the limits of GPUs that are not NVIDIA's, and without its PTX."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from gecko_mlc.checkpoint.mapping import QUANTIZATIONS
from gecko_mlc.compile.gpu_targets import VulkanTarget
from gecko_mlc.compile.targets import resolve
from gecko_mlc.config import GeckoConfig
from relax_model.gpu import GpuGecko
from tir_kernels.gpu.kernels import GpuKernels

_BYTES = {"float32": 4, "uint32": 4, "int32": 4, "float16": 2, "bfloat16": 2}


class Model(GpuGecko):
    batches = (1, 32)


def device_functions(config: GeckoConfig, dtype: str, target: VulkanTarget) -> list[tirx.PrimFunc]:
    """The model's kernels, lowered: a CompileError for a shuffle that not all threads reach."""
    model = Model(config, GpuKernels(config, dtype, target.unit))
    module, _ = model.export_tvm(spec=model.module_spec())
    kernels = tvm.IRModule(
        {
            name.name_hint: function.with_attr("global_symbol", name.name_hint)
            for name, function in module.functions_items()
            if isinstance(function, tirx.PrimFunc)
        }
    )
    kernels = tirx.transform.BindTarget(target.tvm_target)(kernels)
    lower, _, finish = tvm.tirx.get_tir_pipeline(target.tir_pipeline)
    lowered = lower(kernels)
    on_device = tirx.transform.Filter(lambda f: f.attrs["target"].kind.name == "vulkan")(lowered)
    return list(finish()(on_device).functions.values())


class Uses:
    """What a lowered kernel takes."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self.threads, self.shared = 1, 0
        self.dtypes: set[str] = set()
        self.calls: set[str] = set()
        tvm_ffi.structural_walk(
            function.body,
            [
                (tirx.AttrStmt, self._attribute),
                (tirx.AllocBuffer, self._allocate),
                (Call, self._call),
            ],
        )

    def _attribute(self, node: tirx.AttrStmt) -> None:
        if node.attr_key == "thread_extent" and node.node.thread_tag.startswith("threadIdx"):
            self.threads *= int(node.value)

    def _allocate(self, node: tirx.AllocBuffer) -> None:
        dtype = str(node.buffer.ty.dtype.dtype)
        self.dtypes.add(dtype)
        if node.buffer.ty.storage_scope.startswith("shared"):
            size = _BYTES[dtype]
            for extent in node.buffer.ty.shape:
                size *= int(extent)
            self.shared += size

    def _call(self, node: Call) -> None:
        self.calls.add(node.op.name)


@pytest.mark.parametrize(
    ("name", "quantization", "target"),
    [("alt", "q0f32", "vulkan"), ("7b", "q0f16", "vulkan"), ("7b", "q0bf16", "vulkan-nvidia")],
)
def test_kernels_keep_to_the_limits(
    name: str, quantization: str, target: str, golden: Path
) -> None:
    config = (
        GeckoConfig.from_file(golden / "config_alt.json")
        if name == "alt"
        else GeckoConfig.preset(name)
    )
    limits = resolve(target)
    assert isinstance(limits, VulkanTarget)
    functions = device_functions(config, QUANTIZATIONS[quantization], limits)
    assert len(functions) > 50
    for function in functions:
        kernel, uses = str(function.attrs["global_symbol"]), Uses(function)
        assert uses.threads <= limits.threads, kernel
        assert uses.shared <= limits.shared, kernel
        assert "float64" not in uses.dtypes, kernel
        assert not [call for call in uses.calls if "ptx" in call or "cuda" in call], kernel
