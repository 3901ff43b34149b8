"""What a target's name means: the TVM target, its vector unit, and what it asks of a machine."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import tvm
from tvm.target import codegen

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
class CompileTarget:
    """A named target, resolved.

    ``features`` are the instruction set extensions in LLVM's names that the library needs;
    ``threads`` is how many CPU threads it uses unless told otherwise (None: one per core).
    """

    name: str
    options: dict[str, Any]
    unit: VectorUnit
    features: tuple[str, ...]
    threads: int | None = None

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
        triple = self.options.get("mtriple") or codegen.llvm_get_system_triple()
        return triple.split("-")[0]


def resolve(name: str, mcpu: str | None = None, threads: int | None = None) -> CompileTarget:
    """The target a preset's name means; ``mcpu`` overrides its processor."""
    if threads is not None and threads < 1:
        raise TargetError(f"threads is {threads}, wanted at least 1")
    known = presets()
    if name not in known:
        raise TargetError(f"no target {name!r}; there are {', '.join(known)}")
    options = {key: value for key, value in known[name].items() if key != "description"}
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
    return CompileTarget(name, options, unit, tuple(sorted(features)), threads)


def vector_unit(features: set[str]) -> VectorUnit:
    """The register tile that suits a processor with these extensions."""
    if "avx512f" in features:
        return AVX512
    if {"avx2", "fma"} <= features:
        return AVX2
    return NEON if "neon" in features else PORTABLE
