"""Kernels in the Metal shading language (MSL), printed by TVM's own code generator.

``PIPELINE`` is the name to give to ``relax.build`` or ``tvm.tirx.build`` as ``tir_pipeline``. It is
the portable pipeline, and at its end what TVM's printer needs so that its text is right: vectors of
at most four elements, constants it does not round, registers without pointer casts, 16-bit floating
point that Metal has. A kernel beyond Metal's limits is a CompileError.
"""

from gecko_mlc.compile.metal.pipeline import PIPELINE

__all__ = ["PIPELINE"]
