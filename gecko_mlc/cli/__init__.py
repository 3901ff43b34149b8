"""The ``gecko-mlc`` program: one module per verb, imported only when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import gecko_mlc

# Verb to what it does, so that --help needs none of the modules.
VERBS = {
    "convert-weight": "convert a checkpoint's weights for compiled libraries",
    "gen-config": "write mlc-chat-config.json and copy the tokenizer",
    "compile": "compile a library for a target",
    "generate": "continue a text",
    "chat": "talk with a model, turn by turn",
    "validate": "compare a library with the PyTorch reference, op by op",
    "bench": "measure speed and memory against the machine's limits",
}

EPILOG = """\
from a checkpoint to text:
  gecko-mlc convert-weight CHECKPOINT --quantization q0f32 -o MODEL
  gecko-mlc gen-config CHECKPOINT --quantization q0f32 -o MODEL
  gecko-mlc generate MODEL -p "Once upon a time"

gecko-mlc VERB --help tells more about each verb.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit status: 0 well, 1 as the verb says, 2 for a user's error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="gecko-mlc",
        description=gecko_mlc.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=gecko_mlc.__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        if verb in arguments[:1]:
            module = importlib.import_module(f"gecko_mlc.cli.{verb.replace('-', '_')}")
            subparser = verbs.add_parser(
                verb,
                help=summary,
                description=module.HELP,
                epilog=getattr(module, "EPILOG", None),
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
        else:
            verbs.add_parser(verb, help=summary)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return _output_closed()
        if not is_for_the_user(error):
            raise
        print(f"gecko-mlc: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def is_for_the_user(error: Exception) -> bool:
    """Our own errors, and the system's about files; any other ValueError is a fault of ours."""
    return isinstance(error, OSError) or type(error).__module__.startswith("gecko_mlc.")


def _output_closed() -> int:
    """The reader of the output went away (``| head``): nothing to tell anyone."""
    # Python flushes standard output once more at exit, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
