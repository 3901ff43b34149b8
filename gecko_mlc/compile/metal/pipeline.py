"""The portable pipeline, with what TVM's Metal printer needs at its end."""

from __future__ import annotations

import tvm
from tvm.tirx import compilation_pipeline

from gecko_mlc.compile.metal.alignment import show_alignment
from gecko_mlc.compile.metal.bfloat import bfloat16_as_bits
from gecko_mlc.compile.metal.limits import check_limits
from gecko_mlc.compile.metal.literals import exact_literals
from gecko_mlc.compile.metal.names import rename_reserved
from gecko_mlc.compile.metal.registers import scalar_registers
from gecko_mlc.compile.metal.shared import align_threadgroup_memory
from gecko_mlc.compile.portable.pipeline import portable_pipeline

PIPELINE = "gecko_mlc.metal"


def metal_pipeline():
    """What TVM asks of a TIR pipeline: its pass, and the passes that end a host's and a device's
    module.
    """
    passes, finalize_host, finalize_device = portable_pipeline()

    def device():
        return tvm.transform.Sequential(
            [
                finalize_device(),
                bfloat16_as_bits,
                scalar_registers,
                align_threadgroup_memory,
                show_alignment,
                exact_literals,
                rename_reserved,
                check_limits,
            ]
        )

    return passes, finalize_host, device


compilation_pipeline.register_tir_pipeline(PIPELINE, metal_pipeline)
