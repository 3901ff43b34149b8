"""``gecko-mlc compile``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HELP = "compile a library for a target"

EPILOG = """\
The library holds the model's graph and kernels, not its weights: one library serves every
checkpoint of the same configuration and quantization. Linking takes g++ or clang++, a cuda target
NVIDIA's nvcc too (no GPU and no driver); running takes none of them, nor TVM's compiler.

examples:
  gecko-mlc compile models/demo -o models/demo/cpu.so
  gecko-mlc compile models/demo --target cpu-x86-64-v3 --threads 4 -o portable.so
  gecko-mlc compile models/demo --target cpu --mcpu znver4 --dump-ir ir/ -o zen4.so
  gecko-mlc compile models/7b --target cuda-sm90a -o models/7b/h200.so
  gecko-mlc compile models/7b --target vulkan -o models/7b/any-gpu.so
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="model folder with mlc-chat-config.json")
    parser.add_argument("--target", default="cpu", metavar="NAME", help=_targets_help())
    parser.add_argument("--mcpu", metavar="CPU", help="processor in LLVM's names (default: target)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads it runs with (default: one per core)"
    )
    parser.add_argument(
        "--dump-ir",
        type=Path,
        metavar="DIR",
        help="write the module after every pass there, and a GPU's source and ptxas report",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="library to write (.so)")


def run(args: argparse.Namespace) -> int:
    from gecko_mlc.compile.library import compile_library
    from gecko_mlc.compile.targets import resolve
    from gecko_mlc.config import GeckoConfig
    from gecko_mlc.runtime.engine import read_chat_config

    chat_config = read_chat_config(args.model)
    config = GeckoConfig.from_dict(chat_config["model_config"])
    target = resolve(args.target, args.mcpu, args.threads)
    start = time.perf_counter()
    compile_library(config, chat_config["quantization"], target, args.output, args.dump_ir)
    seconds = time.perf_counter() - start
    size = args.output.stat().st_size
    print(
        f"{args.output}: {chat_config['quantization']} for {target.summary}, "
        f"{size / 1024:,.0f} KiB, compiled in {seconds:.1f} s",
        file=sys.stderr,
    )
    return 0


def _targets_help() -> str:
    from gecko_mlc.compile.presets import presets

    named = "; ".join(f"{name}: {row['description']}" for name, row in presets().items())
    return f"{named} (default: cpu)"
