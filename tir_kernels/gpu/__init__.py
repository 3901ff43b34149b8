"""TIRx kernels for GPUs: one file for each operation, as in ``tir_kernels`` for the CPU."""
