"""What this machine can run: its processor family and instruction set extensions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Names in /proc/cpuinfo that differ from LLVM's by more than underscores.
_ALIASES = {
    "bmi1": "bmi",
    "abm": "lzcnt",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "asimd": "neon",
    "asimdhp": "fullfp16",
    "asimddp": "dotprod",
}
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}


def architecture() -> str:
    """The processor family in LLVM's spelling: x86_64, aarch64, ..."""
    name = platform.machine().lower()
    return _ARCHITECTURES.get(name, name)


def extensions(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str] | None:
    """Instruction set extensions in LLVM's names; None where the system does not list them."""
    if not cpuinfo.is_file():
        return None
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags = value.split()
            return {_ALIASES.get(flag, flag.replace("_", "")) for flag in flags}
    return None


def cores() -> list[int]:
    """Numbers of the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
