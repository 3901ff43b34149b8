"""A compiled library: loading it, and refusing one that this machine or model cannot use."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm
from tvm.runtime import vm

from gecko_mlc.config import FORMAT_VERSION, GeckoConfig
from gecko_mlc.runtime import cuda, machine, metal, vulkan

# The device that code of a TVM target kind runs on.
_DEVICES = {"llvm": "cpu", "cuda": "cuda", "vulkan": "vulkan", "metal": "metal"}
# A mode of TVM's thread pool.
_ONE_CORE_PER_THREAD = -2


class LibraryError(ValueError):
    """A library that cannot be used here; the message says why and what to compile instead."""


class Library:
    """The functions of a compiled library on one device.

    ``metadata`` is what it says of itself (see ``gecko_mlc.compile.library``). Raises LibraryError
    for a device that is not there, a file that is no Gecko library, one of another format, or one
    for another machine.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.path = Path(path)
        self.device = _device(device)
        if not self.path.is_file():
            raise LibraryError(
                f"{self.path} is not a file; make one with gecko-mlc compile MODEL -o {self.path}"
            )
        try:
            # An absolute path: the loader looks up a bare name in the system's folders instead.
            self._module = tvm.runtime.load_module(str(self.path.resolve()))
            self._vm = vm.VirtualMachine(self._module, self.device)
            self.metadata: dict[str, Any] = json.loads(str(self._vm["_metadata"]()))
        except (RuntimeError, AttributeError, ValueError, OSError) as error:
            if kind := re.search(r"load_from_bytes\.(cuda|vulkan|metal)", str(error)):
                raise LibraryError(
                    f"{self.path} is compiled for a GPU: wanted device {kind[1]}"
                ) from error
            raise LibraryError(f"{self.path} is no library of gecko-mlc: {error}") from error
        self._check_format()
        self._check_machine(device)
        self.config = GeckoConfig.from_dict(self.metadata["model_config"])

    def __getitem__(self, name: str):
        """The function ``name``, called with tensors."""
        return self._vm[name]

    def set_instrument(self, instrument) -> None:
        """Call ``instrument(function, name, before, result, *arguments)`` around every kernel."""
        self._vm.set_instrument(instrument)

    def check_model(self, chat_config: dict[str, Any], source: Path) -> None:
        """LibraryError unless the library was compiled for the model that ``source`` describes."""
        wanted = GeckoConfig.from_dict(chat_config["model_config"]).to_dict()
        found = self.config.to_dict()
        faults = [
            f"{name} is {found[name]} in the library, {wanted[name]} in the model"
            for name in wanted
            if found[name] != wanted[name]
        ]
        if self.metadata["quantization"] != chat_config["quantization"]:
            faults.append(
                f"quantization is {self.metadata['quantization']} in the library, "
                f"{chat_config['quantization']} in the model"
            )
        if faults:
            raise LibraryError(
                f"{self.path} was not compiled for {source}:\n  "
                + "\n  ".join(faults)
                + f"\ncompile one with gecko-mlc compile {source.parent} -o FILE"
            )

    def _check_format(self) -> None:
        found = self.metadata.get("format_version")
        if found != FORMAT_VERSION:
            raise LibraryError(
                f"{self.path} has format {found}, this runtime reads {FORMAT_VERSION}: "
                "compile it again with this version of gecko-mlc"
            )

    def _check_machine(self, device: str) -> None:
        target = self.metadata["target"]
        kind, index = _kind_and_index(device)
        if _DEVICES.get(target["options"]["kind"]) != kind:
            raise LibraryError(
                f"{self.path} is compiled for {target['name']}, it cannot run on device {device}"
            )
        here = machine.architecture()
        if target["architecture"] != here:
            raise LibraryError(
                f"{self.path} is for {target['architecture']} processors, this one is {here}"
            )
        if kind == "cuda":
            self._check_gpu(target, cuda.capability(index))
        elif kind == "vulkan":
            self._check_vulkan(target, index)
        elif kind == "cpu":
            self._check_processor(target)

    def _check_gpu(self, target: dict[str, Any], gpu: tuple[int, int]) -> None:
        if not cuda.can_run(target["machine_code"], target["ptx"], gpu):
            raise LibraryError(
                f"{self.path} (target {target['name']}) has machine code for "
                f"{', '.join(target['machine_code'])}, this GPU has compute capability "
                f"{gpu[0]}.{gpu[1]}; --target cuda compiles for all from 8.0 on"
            )

    def _check_vulkan(self, target: dict[str, Any], index: int) -> None:
        for module in _imported(self._module):
            if module.kind == "vulkan":
                try:
                    module["check_device"](index)
                except RuntimeError as error:
                    raise LibraryError(f"{self.path} (target {target['name']}): {error}") from error

    def _check_processor(self, target: dict[str, Any]) -> None:
        extensions = machine.extensions()
        missing = [] if extensions is None else sorted(set(target["features"]) - extensions)
        if missing:
            raise LibraryError(
                f"{self.path} (target {target['name']}, {target['options'].get('mcpu')}) needs "
                f"{', '.join(missing)}, which this processor lacks; "
                "compile for an older one, such as --target cpu-x86-64-v3"
            )


def set_threads(threads: int | None) -> None:
    """CPU threads that kernels use; None means one per core this process may run on."""
    cores = machine.cores()
    if threads is None:
        threads = len(cores)
    if threads < 1:
        raise LibraryError(f"threads is {threads}, wanted at least 1")
    # Named cores settle the number of threads once. Without them TVM asks the system how many
    # processors there are at every launch of a kernel, which takes longer than the launch.
    named = [str(cores[i % len(cores)]) for i in range(threads)]
    tvm.get_global_func("runtime.config_threadpool")(_ONE_CORE_PER_THREAD, threads, named)
    if hasattr(os, "sched_setaffinity"):
        # TVM also binds the calling thread, and every thread it starts later would inherit that.
        os.sched_setaffinity(0, cores)


def _device(name: str):
    try:
        kind, index = _kind_and_index(name)
        if kind == "cuda":
            cuda.load_runtime()
        elif kind == "vulkan":
            vulkan.load_runtime(index)
        elif kind == "metal":
            metal.load_runtime()
        device = tvm.runtime.device(kind, index)
    except (ValueError, RuntimeError, AttributeError) as error:
        raise LibraryError(f"no device {name!r}: {error}") from error
    if not device.exist:
        raise LibraryError(f"device {name!r} is not there; this machine always has cpu")
    return device


def _imported(module) -> Iterator[Any]:
    """The module and all that it imports."""
    yield module
    for other in module.imports:
        yield from _imported(other)


def _kind_and_index(name: str) -> tuple[str, int]:
    kind, _, index = name.partition(":")
    return kind, int(index or 0)
