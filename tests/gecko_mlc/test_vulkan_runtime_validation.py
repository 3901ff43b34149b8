"""Khronos's validation layer has nothing to say of what the Vulkan runtime does."""

from __future__ import annotations

from pathlib import Path

import vulkan_kernels

WATCHED = ("memory", "kernels", "graph")


def test_the_runtimes_tests_are_clean(tmp_path):
    vulkan_kernels.device()
    variables, log = vulkan_kernels.validated(tmp_path)
    here = Path(__file__).parent
    tests = [str(here / f"test_vulkan_runtime_{name}.py") for name in WATCHED]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(tmp_path / "b")]
    # Those that start processes of their own would write over the log.
    others = "not on_disk and not nothing_can_be_kept"
    program = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    # The graphs' tests compile.
    variables["TVM_USE_RUNTIME_LIB"] = "0"
    vulkan_kernels.run_program(program, *options, "-k", others, *tests, **variables)
    assert not log.read_text(encoding="utf-8")


def test_a_violation_is_logged(tmp_path):
    # A kernel with a capability that the runtime does not enable.
    variables, log = vulkan_kernels.validated(tmp_path)
    program = (
        "import vulkan_kernels as v, numpy as np, tvm, pathlib;"
        "d = v.device(); t = tvm.runtime.tensor(np.zeros(8, 'float32'), d);"
        f"k = v.axpy(pathlib.Path({str(tmp_path)!r}), capability='Float64');"
        "v.load(v.module_bytes({'axpy': k}))['axpy'](v.address(t), v.address(t), 1.0, 8, 1, 64);"
        "d.sync()"
    )
    vulkan_kernels.run_program(program, **variables)
    assert "Float64" in log.read_text(encoding="utf-8")
