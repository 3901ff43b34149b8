"""``gecko-mlc bench``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HELP = "measure speed and memory against the machine's limits"

EPILOG = """\
Times prefill (last logits only) and decode beside the PyTorch reference in the same run, in turns,
with equal threads and both in float32 arithmetic; the reference's weights are float32 and random.
For every kernel: time, and how near it comes to the machine's limit, which is measured too. The
limit is that of main memory: what fits the caches may pass it.

A preset (tiny, small, 7b) stands for a model of that size with random weights. Without --lib the
library is compiled for this machine the first time, and the time that takes is reported.

On a GPU a preset's weights are made on the device. A step of decode is timed as one of
many in a row that sample on the device, kernels by the device's own clock, and of PyTorch,
where it is installed, only torch.matmul on the model's shapes (CUDA).

examples:
  gecko-mlc bench --preset small
  gecko-mlc bench models/demo --lib demo.so --threads 1 --prompt 100 1000 --json demo.json
  gecko-mlc bench --preset small --position 1000 100000 --batch 1 4 --no-reference
  gecko-mlc bench --preset 7b --quantization q0bf16 --device cuda --lib gecko-7b.so --batch 1 32
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gecko_mlc.checkpoint.mapping import QUANTIZATIONS

    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("model", type=Path, nargs="?", help="model folder with converted weights")
    model.add_argument("--preset", metavar="NAME", help="a model of this size, random weights")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        help="type of a preset's matrices (default: q0f32); a model folder has its own",
    )
    parser.add_argument("--lib", type=Path, metavar="FILE", help="library (default: compiled)")
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda, vulkan, or cuda:N, vulkan:N (default: cpu)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument(
        "--prompt",
        type=int,
        nargs="+",
        metavar="N",
        help="tokens to prefill (default: two chunks)",
    )
    parser.add_argument(
        "--decode", type=int, default=32, metavar="N", help="tokens behind the prompt (default: 32)"
    )
    parser.add_argument(
        "--position",
        type=int,
        nargs="+",
        metavar="N",
        help="where to time a step of decode (default: near the start, with full windows, and near "
        "100 000; 1 000 000 on a GPU)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="sequences per step of decode (default: 1)",
    )
    parser.add_argument(
        "--no-reference", action="store_true", help="leave the reference out; needs no PyTorch"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="turns each is timed in (default: 5)"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all results there; - for standard output, no tables"
    )


def run(args: argparse.Namespace) -> int:
    from gecko_mlc.bench import measure, report
    from gecko_mlc.bench.random_parameters import random_parameters
    from gecko_mlc.bench.timing import Effort
    from gecko_mlc.cli.report_file import write_report
    from gecko_mlc.config import GeckoConfig
    from gecko_mlc.runtime import machine
    from gecko_mlc.runtime.engine import Engine, read_chat_config
    from gecko_mlc.runtime.weights import load_parameters

    if args.preset is None and args.quantization is not None:
        raise measure.BenchError(
            "--quantization goes with --preset: a model folder's weights have their type already"
        )
    if args.rounds < 1:
        raise measure.BenchError(f"--rounds is {args.rounds}, wanted at least 1")
    with _model(args) as model:
        chat_config = read_chat_config(model)
        config = GeckoConfig.from_dict(chat_config["model_config"])
        plan = measure.Plan(
            prompts=args.prompt or [2 * config.chunk_size],
            decode=args.decode,
            positions=args.position or measure.Plan.default_positions(config, args.device),
            batches=args.batch,
            threads=len(machine.cores()) if args.threads is None else args.threads,
            reference=not args.no_reference,
            effort=Effort(rounds=args.rounds),
        )
        plan.check()
        library, compile_seconds = args.lib, None
        if library is None:
            library, compile_seconds = _compiled(model, args.device)
        _progress("weights")
        engine = Engine(
            model,
            library,
            device=args.device,
            threads=plan.threads,
            slots=max(plan.batches),
            weights=random_parameters if _made_on_device(args) else load_parameters,
        )
        name = args.preset or str(args.model)
        result = measure.run(engine, model, args.device, plan, name, compile_seconds, _progress)
    if args.json != "-":
        print(report.text(result))
    if args.json is not None:
        write_report(json.dumps(result.to_dict(), indent=1) + "\n", args.json)
    return 0


@contextlib.contextmanager
def _model(args: argparse.Namespace) -> Iterator[Path]:
    """The model's folder; a preset's is made for this run."""
    if args.preset is None:
        yield args.model
        return
    from gecko_mlc.checkpoint import convert, random_checkpoint, write_chat_config
    from gecko_mlc.config import GeckoConfig

    config = GeckoConfig.preset(args.preset)
    quantization = args.quantization or "q0f32"
    with tempfile.TemporaryDirectory(prefix="gecko-mlc-bench-") as folder:
        write_chat_config(config, quantization, folder, "bytes")
        if not _made_on_device(args):
            _progress(f"random weights of {args.preset}, {quantization}")
            convert(config, random_checkpoint(config), quantization, folder)
        yield Path(folder)


def _made_on_device(args: argparse.Namespace) -> bool:
    """Whether a preset's weights go straight to the device, without a file."""
    return args.preset is not None and not args.device.startswith("cpu")


def _compiled(model: Path, target: str) -> tuple[Path, float | None]:
    """The cached library, and the seconds it took to compile if it was not there."""
    from gecko_mlc.compile.cache import cached_library

    lines: list[str] = []

    def on_progress(line: str) -> None:
        lines.append(line)
        _progress(line)

    start = time.perf_counter()
    library = cached_library(model, target=target, on_progress=on_progress)
    seconds = time.perf_counter() - start
    return library, seconds if lines else None  # it says so when it compiles


def _progress(line: str) -> None:
    print(f"gecko-mlc: {line}", file=sys.stderr, flush=True)
