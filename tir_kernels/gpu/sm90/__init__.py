"""Kernels for Hopper: TMA into shared memory, warpgroup products (wgmma), float32 accumulators."""
