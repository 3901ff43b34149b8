"""Measuring in a process of its own, where this one's libraries and memory do not count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gecko_mlc


class ChildError(ValueError):
    """A measuring process that failed; what it said is on standard error."""


def measure(module: str, arguments: Any, environment: Mapping[str, str]) -> Any:
    """What ``python -m module`` prints in JSON, given ``arguments`` as its one argument in JSON."""
    # The child must find the package where this process found it, installed or not.
    places = [str(Path(gecko_mlc.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(place for place in places if place)
    finished = subprocess.run(
        [sys.executable, "-m", module, json.dumps(arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    if finished.returncode:
        raise ChildError(f"{module} ended with status {finished.returncode}, wanted 0")
    return json.loads(finished.stdout)
