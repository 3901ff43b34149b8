"""``gecko-mlc gen-config``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "write mlc-chat-config.json and copy the tokenizer"

EPILOG = """\
The tokenizer is the tokenizer.json beside the checkpoint, or the one --tokenizer names; a model
with a vocabulary of 256 to 260 and no such file reads bytes. With the word none the model has no
tokenizer: it can be compiled, validated and measured, but not given text. The begin and end tokens
come from tokenizer_config.json. The file written can be edited: default temperature, top_p and
repetition_penalty, stop_token_ids, stop_strings, and for chat a conv_template such as
  {"system": "", "user_prefix": "User: ", "user_suffix": "\\n",
   "assistant_prefix": "Assistant:", "assistant_suffix": "\\n"}
(null passes what is typed to the model as it is).

examples:
  gecko-mlc gen-config checkpoints/gecko-7b --quantization q0bf16 -o models/gecko-7b
  gecko-mlc gen-config run/step-9000.pt --quantization q0f32 --tokenizer bytes -o models/step-9000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from gecko_mlc.checkpoint.mapping import QUANTIZATIONS

    parser.add_argument("checkpoint", type=Path, help="checkpoint folder, or a weight file in it")
    parser.add_argument(
        "--quantization",
        required=True,
        choices=QUANTIZATIONS,
        help="type of the matrices, as given to convert-weight",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH|bytes|none",
        help="tokenizer.json, a folder with it, bytes or none (default: the checkpoint's)",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="model folder to write")


def run(args: argparse.Namespace) -> int:
    from gecko_mlc.checkpoint import open_checkpoint, write_chat_config
    from gecko_mlc.checkpoint.chat_config import CHAT_CONFIG_NAME, find_tokenizer
    from gecko_mlc.checkpoint.reader import checkpoint_folder

    config, _ = open_checkpoint(args.checkpoint)
    tokenizer = args.tokenizer or find_tokenizer(checkpoint_folder(args.checkpoint), config)
    values = write_chat_config(config, args.quantization, args.output, tokenizer)
    print(f"{args.output / CHAT_CONFIG_NAME}: tokenizer {values['tokenizer'] or 'none'}")
    if values["tokenizer_files"] and not values["stop_token_ids"]:
        print(
            "gecko-mlc: no end token known (no eos_token in tokenizer_config.json): generation "
            "stops at --max-tokens unless you add stop_token_ids",
            file=sys.stderr,
        )
    return 0
