"""Sliding chunk attention, the memory read and the gate on a GPU; see ``tir_kernels.attention``."""
