"""What bench reports: complete, consistent, in JSON and in tables; never how fast."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from gecko_mlc.bench import limits, measure, report, results
from gecko_mlc.bench.compiled import Compiled
from gecko_mlc.bench.timing import Effort
from gecko_mlc.cli import main
from gecko_mlc.config import GeckoConfig
from gecko_mlc.runtime.engine import Engine
from tir_kernels import cost

ROOT = Path(__file__).parents[2]
KERNELS = {"embed", "timenorm", *cost.LAYER_KERNELS, "logits", "advance"}


@pytest.fixture(scope="module", autouse=True)
def small_reads() -> typing.Iterator[None]:
    """The benchmark's buffer is larger than caches, which matters to times only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "READ_BYTES", 2**20)
        yield


@pytest.fixture(scope="module")
def result(tiny_model: tuple[Path, Path]) -> results.Result:
    folder, library = tiny_model
    plan = measure.Plan(
        prompts=[3, 130],
        decode=2,
        positions=[5, 100_030],
        batches=[1, 2],
        threads=1,
        reference=True,
        effort=Effort(rounds=2, seconds=0.001),
    )
    engine = Engine(folder, library, threads=1, slots=2)
    return measure.run(engine, folder, "cpu", plan, "tiny", None)


def check(value: Any, wanted: Any, where: str) -> None:
    """``value``, from JSON, is what the annotation ``wanted`` says, all the way down."""
    if dataclasses.is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        assert set(value) == set(hints), where
        for name, hint in hints.items():
            check(value[name], hint, f"{where}.{name}")
    elif isinstance(wanted, types.UnionType):
        if value is not None:
            (inner,) = (kind for kind in typing.get_args(wanted) if kind is not types.NoneType)
            check(value, inner, where)
    elif typing.get_origin(wanted) is list:
        assert value, where
        for i, item in enumerate(value):
            check(item, typing.get_args(wanted)[0], f"{where}[{i}]")
    elif typing.get_origin(wanted) is dict:
        for key, item in value.items():
            check(item, typing.get_args(wanted)[1], f"{where}[{key}]")
    elif wanted is not Any:
        assert isinstance(value, wanted), f"{where} is {value!r}, wanted {wanted}"


def test_json_holds_every_result_in_its_type(result: results.Result) -> None:
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    check(values, results.Result, "result")
    assert GeckoConfig.from_dict(values["model_config"]).model_dim == 128


def test_everything_asked_for_is_there(result: results.Result) -> None:
    assert [row.tokens for row in result.prefill] == [3, 130]
    assert [(row.position, row.batch) for row in result.decode] == [
        (5, 1), (5, 2), (100_030, 1), (100_030, 2),
    ]  # fmt: skip
    assert [(row.prompt, row.tokens) for row in result.generation] == [(3, 2), (130, 2)]
    assert [(step.function, step.description) for step in result.steps] == [
        ("prefill", "130 tokens"), ("decode", "position 5"), ("decode", "position 100030"),
        ("decode", "position 5, batch 2"), ("decode", "position 100030, batch 2"),
    ]  # fmt: skip
    assert [row.name for row in result.products] == list(cost.PRODUCTS)
    assert set(result.memory.at) == {"5", "100030"}
    rows: list[Any] = [*result.prefill, *result.decode, *result.generation]
    for row in rows:
        assert row.seconds > 0 and row.reference_seconds > 0 and row.speedup > 0
    assert result.limits.read_bandwidth > 0
    assert result.limits.multiply_rate > 0
    assert result.limits.multiply_by == "multiply-adds on registers, float32"


def test_every_kernel_is_there_as_often_as_it_runs(result: results.Result) -> None:
    prefill, decode, *_ = ({row.name: row for row in step.operations} for step in result.steps)
    assert set(prefill) == KERNELS | {"last_row", "memory_commit"}
    assert set(decode) == KERNELS
    # 130 tokens are three pieces of a chunk of 64 at most; the second ends chunk 1.
    calls = {"embed": 3, "timenorm": 9, "wv": 6, "memory_commit": 2, "logits": 3}
    assert {name: prefill[name].calls for name in calls} == calls
    assert decode["timenorm"].calls == 3 and decode["attention"].calls == 2
    for step in result.steps:
        for row in step.operations:
            assert row.of_step == row.seconds / step.seconds
            assert (row.bound_by in ("memory", "compute")) == (row.name != "advance")


def test_bounds_follow_from_the_limits(result: results.Result) -> None:
    step = result.steps[0]
    for row in step.operations:
        if row.bytes is None or row.operations is None or row.of_limit is None:
            continue
        memory = row.bytes / step.read_bandwidth
        compute = row.operations / result.limits.multiply_rate
        assert row.of_limit * row.seconds == pytest.approx(max(memory, compute))


def test_far_positions_cost_the_same(result: results.Result) -> None:
    """100 030 is at the same place in its chunk as 3 * 64 - 2 and sees as many rows."""
    far = result.decode[2]
    assert far.visible == 127
    assert far.weight_bytes < far.bytes
    memory = result.memory
    assert memory.peak is not None and memory.peak > memory.params + memory.slot
    near, far_away = memory.at.values()
    assert near is not None and far_away is not None
    assert abs(near - far_away) <= 2**16, "more than the interpreter's own comings and goings"


def test_costs_of_pieces_add_up(tiny_model: tuple[Path, Path]) -> None:
    """Cutting a prompt costs weights again, but computes the same."""
    engine = Engine(*tiny_model, threads=1)
    compiled = Compiled(engine, slots=1)

    def costs(tokens: int, all_logits: bool = True) -> dict[str, cost.Cost]:
        return compiled.prefill_costs(tokens, cost.forward, cost.commit, all_logits)

    whole, first = costs(130), costs(128)
    last = cost.forward(compiled.work((cost.Span(128, 2),), 2))
    assert whole["wv"] == first["wv"] + last["wv"]
    assert whole["memory_commit"] == first["memory_commit"]
    one, all_of_it = costs(64, all_logits=False), costs(64)
    assert all_of_it["logits"].operations == 64 * one["logits"].operations
    assert "memory_commit" not in one


def test_tables_show_every_kernel_and_figure(result: results.Result) -> None:
    text = report.text(result)
    for name in [*KERNELS, "memory_commit", "last_row", "rest", "speedup", "peak", "torch.matmul"]:
        assert name in text
    lines = text.splitlines()
    for title in ("prefill, last", "decode, one", "decode, many", "matrix products", "memory of"):
        assert sum(line.startswith(title) for line in lines) == 1
    assert all(line == line.rstrip() for line in lines)


def test_without_the_reference_no_torch_is_needed(
    tiny_model: tuple[Path, Path], tmp_path: Path
) -> None:
    """On TVM's runtime-only libraries, in a process where torch cannot be imported."""
    folder, library = tiny_model
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from gecko_mlc.bench import limits\n"
        "limits.READ_BYTES = 2**20\n"
        "from gecko_mlc.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "bench", str(folder), "--lib", str(library)]
    command += ["--no-reference", "--rounds", "1", "--prompt", "4", "--decode", "1"]
    command += ["--position", "9", "--threads", "1", "--json", str(tmp_path / "result.json")]
    environment = {"PYTHONPATH": str(ROOT), "TVM_USE_RUNTIME_LIB": "1", "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "not measured" in finished.stdout
    values = json.loads((tmp_path / "result.json").read_text())
    check(values, results.Result, "result")
    assert values["reference"] is None and values["compile_seconds"] is None
    assert values["limits"]["multiply_by"] == "numpy.matmul, float32"
    assert values["prefill"][0]["speedup"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["MODEL", "--quantization", "q0f16"], "--quantization goes with --preset"),
        (["MODEL", "--rounds", "0"], "--rounds is 0"),
        (["MODEL", "--lib", "LIB", "--prompt", "0"], "--prompt is [0], wanted at least 1"),
        (["MODEL", "--lib", "LIB", "--position", "-1"], "--position is [-1], wanted at least 0"),
        (["MODEL", "--lib", "LIB", "--batch", "1", "0"], "--batch is [0], wanted at least 1"),
        (["--preset", "huge"], "no preset 'huge'"),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    arguments: list[str],
    message: str,
    tiny_model: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = dict(zip(("MODEL", "LIB"), map(str, tiny_model), strict=True))
    assert main(["bench", *(places.get(word, word) for word in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_json_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gecko_mlc.cli import report_file

    write = report_file.write_report
    target = tmp_path / "result.json"
    target.write_text("before")

    def fail(*_arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(report_file.os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write("after", str(target))
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]
    write("after", str(target))
    assert target.read_text() == "after"
    write("shown", "-")
    assert capsys.readouterr().out == "shown"
