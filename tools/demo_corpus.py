"""The demo's text: the source of a Python's own standard library, cut in two by module name."""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path

# Not the library's own code: installed packages, tests, and tables written by programs.
LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
# Stands before every file's text; no source file contains it.
SEPARATOR = b"\0"
# One module in so many is kept out of training.
HELD_OUT_SHARE = 16


def stdlib() -> Path:
    """Where the running Python keeps its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_held_out(module: str) -> bool:
    """By the hash of a module's dotted name alone: the same in every version of Python."""
    digest = hashlib.sha256(module.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def modules(folder: Path) -> dict[str, Path]:
    """The library's files by dotted module name, in the order of the names."""
    found = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        if not LEFT_OUT.intersection(parts):
            found[".".join(parts)] = path
    if not found:
        raise FileNotFoundError(f"no Python source under {folder}, wanted a standard library")
    return dict(sorted(found.items()))


def text(folder: Path, *, held_out: bool) -> bytes:
    """The held-out files, or all the others, one after another."""
    return b"".join(
        SEPARATOR + path.read_bytes().replace(b"\r\n", b"\n")
        for name, path in modules(folder).items()
        if is_held_out(name) == held_out
    )


def evaluation_text(folder: Path, size: int = 65536) -> bytes:
    """The first `size` bytes of the held-out text: what bits per byte are measured on."""
    return text(folder, held_out=True)[:size]
