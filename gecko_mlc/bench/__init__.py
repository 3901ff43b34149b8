"""Speed and memory of a compiled library, beside the machine's limits and the reference."""
