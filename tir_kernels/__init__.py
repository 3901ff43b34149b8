"""Hand-scheduled TensorIR kernels of the Gecko model, one file per operation."""
