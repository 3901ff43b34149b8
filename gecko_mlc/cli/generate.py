"""``gecko-mlc generate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gecko_mlc.cli.model_options import (
    add_model_arguments,
    add_sampling_arguments,
    open_engine,
    sampling_params,
    stop_arguments,
)

HELP = "continue a text"

EPILOG = """\
The continuation (without the prompt) goes to standard output as it is generated. Without --lib the
library is compiled for this machine the first time, which takes seconds to a minute.

examples:
  gecko-mlc generate models/demo -p "def main(" --max-tokens 200
  gecko-mlc generate models/demo --prompt-file story.txt --temperature 0 --stats
  cat story.txt | gecko-mlc generate models/demo --lib demo.so --seed 7 --stop "THE END"
"""


class PromptError(ValueError):
    """A prompt that is not text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="text to continue (default: stdin)")
    prompt.add_argument("--prompt-file", type=Path, metavar="FILE", help="file to continue")
    add_sampling_arguments(parser, max_tokens=256)


def run(args: argparse.Namespace) -> int:
    from gecko_mlc.runtime.generation import Generation
    from gecko_mlc.runtime.sampling import Sampler
    from gecko_mlc.runtime.tokenizer import load_tokenizer

    prompt = _prompt(args)
    tokenizer = load_tokenizer(args.model)
    engine = open_engine(args, slots=1)
    sampler = Sampler(sampling_params(args, engine.chat_config))
    with engine.new_sequence() as sequence:
        generation = Generation(
            engine,
            sequence,
            tokenizer,
            tokenizer.encode(prompt, bos=True),
            sampler,
            **stop_arguments(args, engine.chat_config),
        )
        for piece in generation:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if args.stats:
        print(f"{generation.statistics}; ended by {generation.finish_reason}", file=sys.stderr)
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        return args.prompt
    if args.prompt_file is not None:
        data, name = args.prompt_file.read_bytes(), str(args.prompt_file)
    else:
        data, name = sys.stdin.buffer.read(), "standard input"
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not UTF-8 text: {error}") from error
