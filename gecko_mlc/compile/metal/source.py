"""The MSL in a compiled module."""

from __future__ import annotations

from pathlib import Path


def metal_source(module) -> str:
    """The source of all Metal kernels that ``module`` imports, itself or through others."""
    found = [
        str(imported.inspect_source("metal"))
        if imported.kind == "metal"
        else metal_source(imported)
        for imported in module.imports
    ]
    return "".join(found)


def write_source(module, folder: Path) -> None:
    """That source as ``folder/kernels.metal``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernels.metal").write_text(metal_source(module), encoding="utf-8")
