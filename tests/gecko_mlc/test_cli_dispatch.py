"""The program around the verbs: help, errors, exit statuses, and what it does not import."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest

import gecko_mlc
from gecko_mlc import cli
from gecko_mlc.config import ConfigError

Install = Callable[[Callable[[argparse.Namespace], int]], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Replace what ``compile`` does."""

    def install(run: Callable[[argparse.Namespace], int]) -> None:
        module = types.ModuleType("gecko_mlc.cli.compile")
        module.__dict__.update(HELP="a verb", add_arguments=lambda parser: None, run=run)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


def test_help_lists_every_verb_without_loading_any(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name, summary in cli.VERBS.items():
        assert name in text and summary in text
    code = (
        "import sys, contextlib\n"
        "from gecko_mlc.cli import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['--help'])\n"
        "heavy = {'tvm', 'tvm_ffi', 'torch', 'numpy', 'tokenizers', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not [name for name in sys.modules if name.startswith('gecko_mlc.cli.')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", cli.VERBS)
def test_each_verb_is_a_module_that_says_the_same(name: str) -> None:
    module = importlib.import_module(f"gecko_mlc.cli.{name.replace('-', '_')}")
    assert cli.VERBS[name] == module.HELP


@pytest.mark.parametrize("name", ["convert-weight", "gen-config", "generate", "chat"])
def test_help_of_a_verb_has_examples_and_loads_neither_tvm_nor_torch(name: str) -> None:
    code = (
        "import sys\n"
        "from gecko_mlc.cli import main\n"
        "try:\n    main([sys.argv[1], '--help'])\nexcept SystemExit as left:\n"
        "    assert left.code == 0\n"
        "assert not {'tvm', 'torch'} & set(sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, name], check=True, capture_output=True, text=True
    )
    assert f"gecko-mlc {name}" in result.stdout.split("examples:")[1]


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--version"], 0), ([], 2), (["no-such-verb"], 2)):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == code
    assert gecko_mlc.__version__ in capsys.readouterr().out


def test_users_errors_have_no_traceback(verb: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise ConfigError("cema_ndim is 0, wanted a positive integer")

    verb(fail)
    assert cli.main(["compile"]) == 2
    assert capsys.readouterr().err == (
        "gecko-mlc: error: cema_ndim is 0, wanted a positive integer\n"
    )

    def missing(args: argparse.Namespace) -> int:
        raise FileNotFoundError(2, "No such file or directory", "model.so")

    verb(missing)
    assert cli.main(["compile"]) == 2
    assert "model.so" in capsys.readouterr().err


def test_our_own_faults_have_one(verb: Install) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise ValueError("operands could not be broadcast together")

    verb(fail)
    with pytest.raises(ValueError, match="broadcast"):
        cli.main(["compile"])


def test_exit_statuses(verb: Install, capsys: pytest.CaptureFixture[str]) -> None:
    verb(lambda args: 1)
    assert cli.main(["compile"]) == 1

    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    verb(interrupted)
    assert cli.main(["compile"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_output_into_a_pipe_that_closes() -> None:
    code = (
        "import sys, types\n"
        "from gecko_mlc.cli import main\n"
        "verb = types.ModuleType('gecko_mlc.cli.compile')\n"
        "def run(args):\n"
        "    while True:\n        print('x' * 100000, flush=True)\n"
        "verb.HELP, verb.add_arguments, verb.run = '', lambda parser: None, run\n"
        "sys.modules['gecko_mlc.cli.compile'] = verb\n"
        "sys.exit(main(['compile']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_python_dash_m() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "gecko_mlc", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout.strip() == gecko_mlc.__version__
