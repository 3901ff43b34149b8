"""The PyTorch reference that compiled libraries are checked against (extra `reference`)."""

from __future__ import annotations

from gecko_mlc.reference.model import Gecko
from gecko_mlc.reference.state import LayerState, State

__all__ = ["Gecko", "LayerState", "State"]
