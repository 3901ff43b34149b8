"""Tests of the CUDA kernels, on the emulated device."""
