"""From a configuration to a compiled library. All but this module needs the TVM compiler."""


class CompileError(ValueError):
    """A library that could not be made; the message says what to install or change."""
