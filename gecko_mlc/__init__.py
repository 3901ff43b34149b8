"""Compile a Gecko language model once, run it on any device with the small TVM runtime."""

__version__ = "0.1.0"
