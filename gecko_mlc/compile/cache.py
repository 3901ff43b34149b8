"""Libraries compiled for this machine, kept from one start to the next."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gecko_mlc.compile import CompileError
from gecko_mlc.compile.presets import presets
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime import cuda, metal
from gecko_mlc.runtime.engine import read_chat_config


def cached_library(
    model: Path, target: str = "cpu", on_progress: Callable[[str], None] = lambda line: None
) -> Path:
    """The library of a model folder for this machine, compiled unless it is there already.

    ``target`` is a target's name or a device's: cuda, cuda:1, ... is that GPU's own target where
    there is one. ``on_progress`` gets a line before and after a compilation. Raises CompileError
    where the compiler is not installed.
    """
    try:
        from gecko_mlc.compile.library import compile_library, versions
        from gecko_mlc.compile.targets import resolve
    except (ImportError, AttributeError) as error:
        raise CompileError(
            f"TVM's compiler cannot be used here ({error}): install apache-tvm whole, or name a "
            "library compiled elsewhere with --lib"
        ) from error
    chat_config = read_chat_config(model)
    config = GeckoConfig.from_dict(chat_config["model_config"])
    resolved = resolve(target_name(target))
    key = {
        "config": config.to_dict(),
        "quantization": chat_config["quantization"],
        "target": resolved.describe(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "sources": _sources_digest(),
    }
    library = cache_folder() / f"{resolved.name}-{_digest(key)}.so"
    if not library.is_file():
        on_progress(f"compiling for {resolved.summary} (once; kept in {library.parent})")
        start = time.perf_counter()
        compile_library(config, chat_config["quantization"], resolved, library)
        on_progress(f"compiled in {time.perf_counter() - start:.0f} s")
    return library


def cache_folder() -> Path:
    """Where libraries are kept: ``gecko-mlc`` in the user's cache folder (XDG_CACHE_HOME)."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "gecko-mlc"


def target_name(target: str) -> str:
    """The target for a device of this machine, which must be there; other names stay."""
    kind, _, index = target.partition(":")
    if kind == "vulkan":
        return f"vulkan-from-device:{index}" if index else "vulkan-from-device"
    if kind == "metal":
        metal.load_runtime()
    if kind != "cuda":
        return target
    cuda.load_runtime()
    major, minor = cuda.capability(int(index or 0))
    own = f"cuda-sm{major}{minor}a"
    return own if own in presets() else "cuda"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:20]


def _sources_digest() -> str:
    """A digest of the compiler's own sources, which change between versions while developing."""
    import gecko_mlc.compile
    import gecko_mlc.vulkan
    import relax_model
    import tir_kernels

    digest = hashlib.sha256()
    for package in (tir_kernels, relax_model, gecko_mlc.compile, gecko_mlc.vulkan):
        assert package.__file__ is not None
        for file in sorted(Path(package.__file__).parent.rglob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
