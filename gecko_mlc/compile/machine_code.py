"""Machine code in a library: what lets it run on a machine without a compiler.

TVM's CUDA code generator leaves source in the compiled module unless a GPU's driver is there, and
has the machine that loads the library compile it. Here the source is taken out again, compiled
once, and a module with machine code put in its place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from gecko_mlc.compile import CompileError
from gecko_mlc.runtime import native

# TVM's own switch (0.27); with it the result does not depend on this machine's driver.
_KEEP_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"


@contextlib.contextmanager
def source_kept() -> Iterator[None]:
    """While in here, TVM leaves a GPU's source in what it builds, whatever this machine has."""
    before = os.environ.get(_KEEP_SOURCE)
    os.environ[_KEEP_SOURCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_KEEP_SOURCE]
        else:
            os.environ[_KEEP_SOURCE] = before


def replace_source(module, kind: str, compiler: Callable[[str], bytes], form: str) -> None:
    """Modules of source of ``kind`` that ``module`` imports get the machine code of ``compiler``.

    ``form`` is what the runtime calls that machine code. Raises CompileError without the package's
    native library.
    """
    try:
        with_machine_code = native.function("with_machine_code")
    except OSError as error:
        raise CompileError(f"cannot put machine code into a library: {error}") from error
    imports = list(module.imports)
    module.clear_imports()
    for imported in imports:
        if imported.kind == kind:
            code = compiler(imported.inspect_source(kind))
            imported = with_machine_code(imported, kind, form, code)
        else:
            replace_source(imported, kind, compiler, form)
        module.import_module(imported)
