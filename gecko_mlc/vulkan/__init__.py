"""Kernels for Vulkan: from lowered TensorIR to SPIR-V, without another compiler."""
