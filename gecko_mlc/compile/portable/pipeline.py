"""The list of passes from a kernel as it is written to what a code generator takes."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.portable.cuda_intrinsics import replace_cuda_intrinsics
from gecko_mlc.compile.portable.functions import replace_functions
from gecko_mlc.compile.portable.shuffle import lower_shuffles
from gecko_mlc.compile.portable.static_shared import static_shared_memory
from gecko_mlc.compile.portable.vectors import split_vectors

PIPELINE = "gecko_mlc.portable"

# LowerTIRx resolves a kernel's CTA and threads for this target alone; its architecture is unused.
_CUDA = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")


@tvm.transform.module_pass(opt_level=0, name="gecko_mlc.lower_device_entry")
def lower_device_entry(mod: tvm.IRModule, _context) -> tvm.IRModule:
    """TVM's LowerTIRx, as if the kernels were for CUDA; their own target is put back after it."""
    targets = {}
    for variable, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc) and "target" in function.attrs:
            targets[variable.name_hint] = function.attrs["target"]
            mod[variable] = function.with_attr("target", _CUDA)
    mod = tirx.transform.LowerTIRx()(mod)
    for name, target in targets.items():
        mod[name] = mod[name].with_attr("target", target)
    return mod


def portable_pipeline():
    """What TVM asks of a TIR pipeline: its pass, and the passes that end a host's and a device's
    module.

    A kernel that the target cannot express is a CompileError.
    """
    passes = [
        lower_device_entry,
        replace_cuda_intrinsics,
        replace_functions,
        static_shared_memory,
        s_tir.transform.UnifyThreadBinding(),
        tirx.transform.StmtSimplify(),
        tirx.transform.LowerTIRxOpaque(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        split_vectors,
        tirx.transform.VectorizeLoop(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        lower_shuffles,
        tirx.transform.MakePackedAPI(),
    ]

    def finalize_host():
        # LLVM's code generator knows no pointer to bfloat16, not even one that it only passes on.
        return tvm.transform.Sequential(
            [tirx.transform.BF16StorageLegalize(), compilation_pipeline.finalize_host_passes()]
        )

    return (
        tvm.transform.Sequential(passes, name=PIPELINE),
        finalize_host,
        compilation_pipeline.finalize_device_passes_tirx,
    )


compilation_pipeline.register_tir_pipeline(PIPELINE, portable_pipeline)
# Passes are called through TVM, which turns errors into RuntimeErrors unless it knows their class.
tvm_ffi.register_error("CompileError", CompileError)
