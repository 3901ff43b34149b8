"""Kernels for Vulkan: from lowered TensorIR to SPIR-V, without another compiler.

``register`` gives TVM the code generator for targets of kind vulkan, which its packages lack.
"""

from gecko_mlc.vulkan.build import register

__all__ = ["register"]
