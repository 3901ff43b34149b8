"""Lowering of the GPU's kernels for targets that are not CUDA: Vulkan and Metal.

``PIPELINE`` is the name to give to ``relax.build`` or ``tvm.tirx.build`` as ``tir_pipeline``. The
kernels are those written for CUDA. What remains after it: flat buffers, no CUDA intrinsic, and of
the shuffles those that a subgroup of the target's ``thread_warp_size`` threads can do.
"""

from gecko_mlc.compile.portable.pipeline import PIPELINE

__all__ = ["PIPELINE"]
