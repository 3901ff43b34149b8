"""Serving needs TVM's runtime alone: no compiler, no PyTorch, nothing of the compiling packages.

TVM's own ``__init__`` imports the Python side of tirx and te whatever the mode (0.27); what makes
a runtime is that the compiler's native library is not loaded and relax is not imported.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

# Run as a program of its own, and with `program` called by the test itself.
PROGRAM = '''
import sys


class Absent:
    """Packages that a serving machine does not have."""

    names = ("torch", "tvm.relax", "tvm.s_tir", "tvm.topi", "gecko_mlc.compile",
             "gecko_mlc.reference", "gecko_mlc.checkpoint", "relax_model", "tir_kernels")

    def find_spec(self, name, path=None, target=None):
        if any(name == absent or name.startswith(absent + ".") for absent in self.names):
            raise ModuleNotFoundError(f"{name} is absent", name=name)


def program(folder, library):
    from gecko_mlc.runtime.engine import Engine
    from gecko_mlc.runtime.generation import Generation
    from gecko_mlc.runtime.sampling import Sampler, SamplingParams
    from gecko_mlc.runtime.tokenizer import ByteTokenizer

    engine = Engine(folder, library, threads=1, slots=2)
    prompt = [i * 7 % 256 for i in range(150)]
    with engine.new_sequence() as sequence:
        generation = Generation(
            engine, sequence, ByteTokenizer(), prompt, Sampler(SamplingParams(temperature=0.0)),
            max_tokens=60,
        )
        text = "".join(generation)
        with sequence.fork() as fork:
            logits = fork.prefill([1, 2, 3])
    return [text, generation.token_ids, logits.astype(float).tolist()]


if __name__ == "__main__":
    import json

    sys.meta_path.insert(0, Absent())
    result = program(*sys.argv[1:])
    with open("/proc/self/maps") as maps:
        libraries = {line.split()[-1].split("/")[-1] for line in maps if "libtvm" in line}
    loaded = {"modules": sorted(sys.modules), "libraries": sorted(libraries)}
    print(json.dumps({"result": result, **loaded}))
'''  # fmt: skip


def test_runtime_only(tiny_model: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "serve.py"
    file.write_text(PROGRAM)
    # The packages' folder as on an installation; the golden data and tests are not looked at.
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(file), *map(str, tiny_model)],
        env={**os.environ, "TVM_USE_RUNTIME_LIB": "1", "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    served = json.loads(done.stdout)

    names: dict = {"__name__": "serve"}
    exec(PROGRAM, names)
    assert served["result"] == names["program"](*tiny_model)
    assert len(served["result"][1]) == 60

    native = {name for name in served["libraries"] if not name.startswith("libtvm_ffi")}
    assert native == {"libtvm_runtime.so"}
    modules = set(served["modules"])
    assert {"tvm.runtime", "numpy", "gecko_mlc.runtime.engine"} <= modules
    packages = {name.split(".")[0] for name in modules}
    assert not packages & {"torch", "relax_model", "tir_kernels", "safetensors"}
    ours = {name for name in modules if name.startswith("gecko_mlc.")}
    parts = {name.split(".")[1] for name in ours}
    assert parts == {"config", "runtime"}


def test_imports_of_the_runtime_package() -> None:
    import gecko_mlc.runtime

    imported = set()
    for file in Path(gecko_mlc.runtime.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(node.module or "")
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    ours = {name for name in foreign if name.startswith("gecko_mlc.")}
    assert {".".join(name.split(".")[:2]) for name in ours} <= {
        "gecko_mlc.config",
        "gecko_mlc.runtime",
    }
    allowed = {"gecko_mlc", "numpy", "ml_dtypes", "tokenizers", "tvm", "tvm.runtime", "tvm_ffi"}
    assert foreign - ours <= allowed
