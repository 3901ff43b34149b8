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

    Where the runtime is loaded the module can be run; elsewhere it can only be exported.
    """
    limits = Limits.of(target)
    kernels = [compile_kernel(function, limits) for function in mod.functions.values()]
    binary = pack(kernels)
    runnable = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.vulkan", allow_missing=True)
    if runnable is not None:
        return runnable(binary)
    try:
        return native.function("binary_module")("vulkan", binary)
    except OSError as error:
        raise CompileError(f"cannot put SPIR-V into a library: {error}") from error


def register() -> None:
    """Make TVM use it, unless TVM has a generator of its own."""
    if tvm_ffi.get_global_func(_NAME, allow_missing=True) is None:
        tvm_ffi.register_global_func(_NAME, build_vulkan)
