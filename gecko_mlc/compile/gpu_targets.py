"""GPU targets: what kernels may use of the GPU, and what a library says of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import tvm
from tvm.target import codegen

from gecko_mlc.compile import metal, portable
from gecko_mlc.vulkan.cooperative import device_multiplies
from tir_kernels.gpu.unit import SM80, SM90A, GpuUnit


def architecture(triple: str | None = None) -> str:
    """The processor family of a platform, this machine's by default: x86_64, aarch64, ..."""
    name = (triple or codegen.llvm_get_system_triple()).split("-")[0]
    return {"arm64": "aarch64"}.get(name, name)  # as Apple calls it


@dataclasses.dataclass(frozen=True)
class CudaTarget:
    """A named CUDA target. Kernels are written for the GPU architecture ``arch`` (sm_80, ...).

    The library holds machine code for each of ``machine_code`` and, where ``ptx`` names an
    architecture (compute_90), what a driver compiles for any GPU from that one on.
    """

    name: str
    arch: str
    machine_code: tuple[str, ...]
    ptx: str | None = None

    tir_pipeline = "tirx"
    # Prefix of the functions that record and replay a decode step.
    graphs = "vm.builtin.cuda_graph"

    @property
    def unit(self) -> GpuUnit:
        return SM90A if self.arch == "sm_90a" else SM80

    @property
    def tvm_target(self) -> tvm.target.Target:
        return tvm.target.Target({"kind": "cuda", "arch": self.arch}, host="llvm")

    @property
    def summary(self) -> str:
        ptx = [f"PTX {self.ptx}"] if self.ptx else []
        return ", ".join([*self.machine_code, *ptx])

    def describe(self) -> dict[str, Any]:
        """What a library says of its target; ``architecture`` is that of the host's processor."""
        return {
            "name": self.name,
            "architecture": architecture(),
            "threads": None,
            "options": {"kind": "cuda", "arch": self.arch},
            "machine_code": list(self.machine_code),
            "ptx": self.ptx,
        }


@dataclasses.dataclass(frozen=True)
class VulkanTarget:
    """A named Vulkan target: limits that every device must have which runs the library.

    ``threads`` of a workgroup, ``shared`` bytes of its memory, ``push_constants`` bytes.
    ``subgroup`` is the size of subgroups that kernels exchange values in, 0 for any device's;
    ``cooperative_matrix`` whether products use VK_KHR_cooperative_matrix.
    """

    name: str
    threads: int
    shared: int
    push_constants: int
    subgroup: int = 0
    cooperative_matrix: bool = False

    tir_pipeline = portable.PIPELINE
    graphs = "gecko_mlc.vulkan"

    @property
    def unit(self) -> GpuUnit:
        return GpuUnit(
            "cooperative" if self.cooperative_matrix else None, self.threads, self.shared
        )

    @property
    def tvm_target(self) -> tvm.target.Target:
        return tvm.target.Target(
            {
                "kind": "vulkan",
                # One thread's exchange with itself is what any device can do.
                "thread_warp_size": self.subgroup or 1,
                "max_num_threads": self.threads,
                "max_threads_per_block": self.threads,
                "max_shared_memory_per_block": self.shared,
                "max_push_constants_size": self.push_constants,
                # Kernels that use them say so: the runtime asks the device.
                "supports_int16": True,
                "supports_int64": True,
                "supports_float16": True,
                "supports_16bit_buffer": True,
                "supports_cooperative_matrix": self.cooperative_matrix,
            },
            # The host's code is calls of kernels: optimizing those would take a fifth of the time.
            host={"kind": "llvm", "opt-level": 0},
        )

    @property
    def summary(self) -> str:
        parts = [f"{self.threads} threads", f"{self.shared // 1024} KiB of shared memory"]
        if self.subgroup:
            parts.append(f"subgroups of {self.subgroup}")
        if self.cooperative_matrix:
            parts.append("cooperative matrices")
        return "Vulkan 1.3, " + ", ".join(parts)

    def describe(self) -> dict[str, Any]:
        """What a library says of its target; ``architecture`` is that of the host's processor."""
        return {
            "name": self.name,
            "architecture": architecture(),
            "threads": None,
            "options": {"kind": "vulkan"},
            "limits": {
                "threads": self.threads,
                "shared": self.shared,
                "push_constants": self.push_constants,
                "subgroup": self.subgroup,
                "cooperative_matrix": self.cooperative_matrix,
            },
        }


@dataclasses.dataclass(frozen=True)
class MetalTarget:
    """A named Metal target: threads of a threadgroup and bytes of its memory.

    ``mtriple`` is the platform of the library's host code; without one it is this machine's. With
    one it is not linked here: the library is a .tar of object files, for a linker on a Mac.
    """

    name: str
    threads: int
    shared: int
    mtriple: str | None = None

    tir_pipeline = metal.PIPELINE
    graphs = None

    @property
    def unit(self) -> GpuUnit:
        return GpuUnit(None, self.threads, self.shared)

    @property
    def tvm_target(self) -> tvm.target.Target:
        host: dict[str, Any] | str = "llvm"
        if self.mtriple is not None:
            host = {"kind": "llvm", "mtriple": self.mtriple}
        options = {
            "kind": "metal",
            "thread_warp_size": 32,
            "max_num_threads": self.threads,
            "max_threads_per_block": self.threads,
            "max_shared_memory_per_block": self.shared,
        }
        return tvm.target.Target(options, host=host)

    @property
    def summary(self) -> str:
        return f"Metal, host {architecture(self.mtriple)}"

    def describe(self) -> dict[str, Any]:
        """What a library says of its target; ``architecture`` is that of the host's processor."""
        return {
            "name": self.name,
            "architecture": architecture(self.mtriple),
            "threads": None,
            "options": {"kind": "metal"},
        }


GpuTarget = CudaTarget | VulkanTarget | MetalTarget


def gpu_target(name: str, preset: dict[str, Any], device: int = 0) -> GpuTarget:
    """The target of a preset of a GPU kind; ``device`` is whose limits are read, where they are.

    Raises gecko_mlc.runtime.vulkan.VulkanError where limits are to be read and there is no device.
    """
    if preset["kind"] == "cuda":
        machine_code = tuple(preset.get("machine_code", [preset["arch"]]))
        return CudaTarget(name, preset["arch"], machine_code, preset.get("ptx"))
    limits = {key: value for key, value in preset.items() if key not in ("kind", "description")}
    if preset["kind"] == "metal":
        return MetalTarget(name, **limits)
    if limits.pop("from_device", False):
        limits = _device_limits(device)
    return VulkanTarget(name, **limits)


def _device_limits(device: int) -> dict[str, Any]:
    from gecko_mlc.runtime import vulkan

    found = vulkan.describe(device)
    least = most = found["subgroup"]
    if found["subgroup_choice"]:
        least, most = found["subgroup_min"], found["subgroup_max"]
    # Kernels exchange values among 32 threads: smaller subgroups do part of it, larger ones none.
    subgroup = min(most, 32) if least <= 32 else 0
    return {
        "threads": min(found["threads"], 1024),
        "shared": found["shared"],
        "push_constants": found["push_constants"],
        "subgroup": subgroup,
        "cooperative_matrix": subgroup == 32
        and found["cooperative_matrix"]
        and device_multiplies(found["cooperative_matrices"]),
    }
