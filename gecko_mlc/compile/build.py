"""From a Relax module to a shared object."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

import tvm
from tvm import relax

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.gpu_targets import CudaTarget, MetalTarget, VulkanTarget
from gecko_mlc.compile.machine_code import replace_source, source_kept
from gecko_mlc.compile.metal.source import write_source
from gecko_mlc.compile.nvcc import compile_cuda, find_nvcc
from gecko_mlc.compile.pipeline import pipeline
from gecko_mlc.compile.targets import CompileTarget
from gecko_mlc.vulkan.build import register as register_vulkan


def check_tools(target: CompileTarget, output: Path) -> None:
    """CompileError unless the programs that compiling for ``target`` takes are there, and
    ``output`` is of a kind that can be made here.
    """
    if isinstance(target, MetalTarget) and target.mtriple is not None:
        if output.suffix != ".tar":
            raise CompileError(
                f"output is {output.name}, wanted a .tar: target {target.name} makes object files "
                "for a Mac, where a linker makes a library of them"
            )
        return
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise CompileError(
            "found neither g++ nor clang++, wanted one to link the library: install a C++ compiler "
            "(Debian: g++); running a finished library needs none"
        )
    if isinstance(target, CudaTarget):
        find_nvcc()


def build(module: tvm.IRModule, target: CompileTarget, dump: Path | None = None):
    """The executable of a module of kernel calls, with machine code for the target's GPUs.

    ``dump`` is a folder for the module after every pass, and for a GPU's source and report.
    """
    options = {"relax.backend.use_cuda_graph": target.graphs is not None}
    if isinstance(target, VulkanTarget):
        register_vulkan()
    with target.tvm_target, tvm.transform.PassContext(config=options), source_kept():
        executable = relax.build(
            module,
            target.tvm_target,
            relax_pipeline=pipeline(dump, target.graphs),
            tir_pipeline=target.tir_pipeline,
        )
    if isinstance(target, CudaTarget):
        compiler = functools.partial(compile_cuda, target=target, dump=dump)
        replace_source(executable.mod, "cuda", compiler, "fatbin")
    if isinstance(target, MetalTarget) and dump is not None:
        write_source(executable.mod, dump)
    return executable


def export(executable, output: Path) -> None:
    """Link the executable into the shared object ``output``, which appears at once or not.

    A ``.tar`` holds the object files instead.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        finished = Path(folder) / f"library{output.suffix}"
        try:
            executable.export_library(str(finished))
        except RuntimeError as error:
            raise CompileError(f"could not link {output}: {error}") from error
        os.replace(finished, output)
