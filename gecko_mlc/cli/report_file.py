"""Where a verb's ``--json`` goes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def write_report(text: str, target: str) -> None:
    """``text`` to the file ``target``, whole or not at all; ``-`` is standard output."""
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
