"""``gecko-mlc convert-weight``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "convert a checkpoint's weights for compiled libraries"

EPILOG = """\
Reads .safetensors or .pt (state dicts of tensors only; these need torch), one file or several
shards, with params.json or config.json beside them. Writes tensor-cache.json and
params_shard_*.bin, which any device's library can load. If any tensor is missing, unknown,
misshapen or not finite, all of them are listed and nothing is written.

examples:
  gecko-mlc convert-weight checkpoints/gecko-7b --quantization q0bf16 -o models/gecko-7b
  gecko-mlc convert-weight run/step-9000.pt --quantization q0f32 -o models/step-9000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gecko_mlc.checkpoint.mapping import QUANTIZATIONS

    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, or a weight file in it")
    parser.add_argument(
        "--quantization",
        required=True,
        choices=QUANTIZATIONS,
        help="type of the matrices: float32, float16 or bfloat16",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="model folder to write")


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from gecko_mlc.checkpoint import convert, open_checkpoint
    from gecko_mlc.checkpoint.mapping import parameters

    config, tensors = open_checkpoint(args.checkpoint)
    total = sum(parameter.nbytes for parameter in parameters(config, args.quantization))
    with tqdm(
        total=total,
        desc="convert-weight",
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,  # quiet when stderr is not a terminal
        file=sys.stderr,
    ) as bar:
        convert(config, tensors, args.quantization, args.output, on_bytes=bar.update)
    print(f"{args.output}: {total / 2**20:.1f} MiB of weights, {args.quantization}")
    return 0
