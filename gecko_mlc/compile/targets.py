"""What a target's name means: the TVM target, and what it asks of the machine that runs it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import tvm
from tvm.target import codegen

from gecko_mlc.compile.gpu_targets import GpuTarget, architecture, gpu_target
from gecko_mlc.compile.presets import presets
from tir_kernels.vector_unit import AVX2, AVX512, NEON, PORTABLE, VectorUnit

# Instruction set extensions that generated code may use; a machine without one must refuse the
# library. Scheduling hints and system instructions among LLVM's features are left out.
_X86 = (
    "sse4.1 sse4.2 popcnt avx avx2 fma f16c bmi bmi2 lzcnt movbe adx gfni vaes vpclmulqdq avxvnni "
    "avx512f avx512bw avx512cd avx512dq avx512vl avx512ifma avx512vbmi avx512vbmi2 avx512vnni "
    "avx512bitalg avx512vpopcntdq avx512bf16 avx512fp16 avx512vp2intersect"
)
_ARM = "neon fullfp16 dotprod bf16 i8mm sve sve2"
_EXTENSIONS = frozenset(f"{_X86} {_ARM}".split())


class TargetError(ValueError):
    """A target that is not known or cannot be compiled for."""


@dataclasses.dataclass(frozen=True)
class CpuTarget:
    """A named CPU target, resolved.

    ``features`` are the instruction set extensions in LLVM's names that the library needs;
    ``threads`` is how many CPU threads it uses unless told otherwise (None: one per core).
    """

    name: str
    options: dict[str, Any]
    unit: VectorUnit
    features: tuple[str, ...]
    threads: int | None = None

    # How TVM lowers kernels for it.
    tir_pipeline = "default"
    graphs = None

    @property
    def cores(self) -> int:
        """Cores to schedule for: the threads asked for, else this machine's."""
        return self.threads or os.cpu_count() or 1

    @property
    def tvm_target(self) -> tvm.target.Target:
        return tvm.target.Target(self.options)

    @property
    def architecture(self) -> str:
        """The processor family: x86_64, aarch64, ..."""
        return architecture(self.options.get("mtriple"))

    @property
    def summary(self) -> str:
        return self.options["mcpu"]

    def describe(self) -> dict[str, Any]:
        """What a library says of its target."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "features": list(self.features),
            "threads": self.threads,
            "options": self.options,
        }


CompileTarget = CpuTarget | GpuTarget


def resolve(name: str, mcpu: str | None = None, threads: int | None = None) -> CompileTarget:
    """The target a preset's name means; ``mcpu`` and ``threads`` are for CPU targets.

    A target whose limits are read from a device may name one of several: vulkan-from-device:1.
    """
    preset_name, _, device = name.partition(":")
    preset = _preset(preset_name)
    if device and not (preset.get("from_device") and device.isdecimal()):
        raise TargetError(
            f"no target {name!r}: {preset_name} is a target, and a number of a device follows only "
            "on one whose limits are read from a device"
        )
    if preset["kind"] == "llvm":
        return cpu_target(name, mcpu, threads)
    if mcpu is not None or threads is not None:
        raise TargetError(f"target {name!r} is a GPU: processor and threads are for CPU targets")
    return gpu_target(name, preset, int(device or 0))


def cpu_target(name: str = "cpu", mcpu: str | None = None, threads: int | None = None) -> CpuTarget:
    """The CPU target a preset's name means; ``mcpu`` overrides its processor."""
    if threads is not None and threads < 1:
        raise TargetError(f"threads is {threads}, wanted at least 1")
    options = {key: value for key, value in _preset(name).items() if key != "description"}
    if mcpu is not None:
        options["mcpu"] = mcpu
    elif "mcpu" not in options:
        options["mcpu"] = codegen.llvm_get_system_cpu()
    if not codegen.llvm_is_valid_cpu(
        options["mcpu"], options.get("mtriple") or codegen.llvm_get_system_triple()
    ):
        raise TargetError(
            f"LLVM knows no processor {options['mcpu']!r}; "
            f"this machine's is {codegen.llvm_get_system_cpu()!r}"
        )
    features = set(codegen.llvm_get_cpu_features(tvm.target.Target(options))) & _EXTENSIONS
    unit = vector_unit(features)
    return CpuTarget(name, options, unit, tuple(sorted(features)), threads)


def vector_unit(features: set[str]) -> VectorUnit:
    """The register tile that suits a processor with these extensions."""
    if "avx512f" in features:
        return AVX512
    if {"avx2", "fma"} <= features:
        return AVX2
    return NEON if "neon" in features else PORTABLE


def _preset(name: str) -> dict[str, Any]:
    known = presets()
    if name not in known:
        raise TargetError(f"no target {name!r}; there are {', '.join(known)}")
    return known[name]
