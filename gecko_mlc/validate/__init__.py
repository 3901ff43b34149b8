"""Comparing a compiled library with the PyTorch reference, op by op and end to end."""
