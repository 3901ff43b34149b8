"""Target presets: what ``--target NAME`` means, from ``build/targets.toml``."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def presets() -> dict[str, dict[str, Any]]:
    """Options by the preset's name: its description, TVM's target kind, mcpu, mtriple."""
    installed = resources.files("gecko_mlc") / "targets.toml"
    # A checkout that was not installed has the file where it is kept.
    file = installed if installed.is_file() else Path(__file__).parents[2] / "build/targets.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))
