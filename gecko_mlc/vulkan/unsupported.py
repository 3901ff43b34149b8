"""What the translation cannot express."""

from __future__ import annotations


class Unsupported(Exception):
    """A construct that has no translation to SPIR-V here; the message names it."""
