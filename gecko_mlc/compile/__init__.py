"""From a configuration to a compiled library. Needs the TVM compiler."""
