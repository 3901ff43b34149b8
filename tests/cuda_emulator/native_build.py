"""Building an emulated device's libraries, once for all processes of a machine."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

COMPILER = ["g++", "-std=c++17", "-fPIC", "-pthread"]


def run(command: list[str], folder: Path, source: str | None = None) -> None:
    """The compiler with these arguments, in ``folder``. RuntimeError with what it says."""
    result = subprocess.run(
        [*COMPILER, *command], cwd=folder, input=source, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


def folder(
    name: str, sources: Iterable[Path], options: list[str], make: Callable[[Path], None]
) -> Path:
    """The folder that ``make`` has filled from ``sources`` with these compiler options."""
    version = hashlib.sha256(" ".join([*COMPILER, *options]).encode())
    for file in sorted(sources):
        version.update(file.read_bytes())
    made = Path(tempfile.gettempdir()) / (
        f"gecko-mlc-{name}-{os.getuid()}-{version.hexdigest()[:16]}"
    )
    made.mkdir(mode=0o700, exist_ok=True)
    with (made / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = made / "done"
        if not done.exists():
            make(made)
            done.touch()
    return made
