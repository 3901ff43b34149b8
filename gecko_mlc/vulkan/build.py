"""TVM's code generator for targets of kind vulkan, where the installed TVM has none."""

from __future__ import annotations

import tvm
import tvm_ffi

from gecko_mlc.compile import CompileError
from gecko_mlc.runtime import native
from gecko_mlc.vulkan.kernel import Limits, compile_kernel
from gecko_mlc.vulkan.module import pack

_NAME = "target.build.vulkan"


def build_vulkan(mod: tvm.IRModule, target: tvm.target.Target):
    """The runtime module of a module of lowered kernels. CompileError for what has no translation,
    or without the package's native library.
    """
    limits = Limits.of(target)
    kernels = [compile_kernel(function, limits) for function in mod.functions.values()]
    try:
        binary_module = native.function("binary_module")
    except OSError as error:
        raise CompileError(f"cannot put SPIR-V into a library: {error}") from error
    return binary_module("vulkan", pack(kernels))


def register() -> None:
    """Make TVM use it, unless TVM has a generator of its own."""
    if tvm_ffi.get_global_func(_NAME, allow_missing=True) is None:
        tvm_ffi.register_global_func(_NAME, build_vulkan)
