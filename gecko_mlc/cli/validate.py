"""``gecko-mlc validate``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gecko_mlc.cli.model_options import add_model_arguments, open_engine
from gecko_mlc.cli.report_file import write_report

if TYPE_CHECKING:
    import numpy as np

HELP = "compare a library with the PyTorch reference, op by op"

EPILOG = """\
The same tokens go through the library and through the reference in float64, and the output of every
operation is compared: as prefill, in pieces of several sizes, and as decode, one token at a time
across a chunk boundary. The reference takes the model folder's own weights, so that only the
library's arithmetic is judged; with --checkpoint it takes the weights before they were rounded,
which shows what the quantization costs. A library that computes in 16 bits is also compared with
PyTorch in that type, and its logits may be off by 1.5 times as much. The exit status is 0 if every
row is within its tolerance, else 1.

Needs PyTorch: pip install gecko-mlc[reference]

examples:
  gecko-mlc validate models/demo
  gecko-mlc validate models/demo --lib demo.so --text book.txt --tokens 20000
  gecko-mlc validate models/gecko --lib gecko.so --checkpoint checkpoints/gecko --json report.json
"""


class ReferenceMissingError(ValueError):
    """PyTorch is not installed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="SRC",
        help="compare with this checkpoint's weights instead of the model's own",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="read this text, and report the perplexity on it (default: pseudo-random tokens)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help="read N tokens (default: all of the text; without one, some three chunks)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the report as JSON; - for standard output, alone"
    )


def run(args: argparse.Namespace) -> int:
    _need_torch()
    import torch
    from tqdm import tqdm

    from gecko_mlc.runtime.weights import stored_arrays
    from gecko_mlc.validate.report import make_report, table, to_json
    from gecko_mlc.validate.run import (
        SLOTS,
        ValidationError,
        checkpoint_reference,
        compare,
        default_tokens,
        own_reference,
    )

    if args.tokens is not None and args.tokens < 1:
        raise ValidationError(f"--tokens is {args.tokens}, wanted at least 1")
    if args.json not in (None, "-") and not Path(args.json).absolute().parent.is_dir():
        raise ValidationError(f"--json {args.json}: there is no such folder")
    text = None if args.text is None else _text_tokens(args)
    engine = open_engine(args, slots=SLOTS)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    if engine.samples_on_device and torch.cuda.is_available():
        device = torch.device(args.device if args.device.startswith("cuda") else "cuda")
    if args.checkpoint is None:
        reference = own_reference(engine, stored_arrays(args.model), device)
    else:
        reference = checkpoint_reference(engine, args.checkpoint, device)
    tokens = default_tokens(engine.config, args.tokens) if text is None else text
    with tqdm(total=len(tokens), desc="validate", unit="token", disable=None) as bar:
        paths = compare(engine, reference, tokens, on_tokens=bar.update)
    quantization = engine.metadata["quantization"]
    unit = "bytes" if engine.chat_config.get("tokenizer") == "bytes" else "tokens"
    subject = {
        "model": str(args.model),
        "library": str(engine.library.path),
        "device": args.device,
        "quantization": quantization,
        "reference": f"float64, weights of {args.checkpoint or args.model}",
        "tokens": f"{len(tokens)} {f'of {args.text}' if args.text else 'pseudo-random'}",
    }
    report = make_report(
        subject,
        paths,
        engine.config,
        quantization,
        checkpoint=args.checkpoint is not None,
        text=None if text is None else unit,
    )
    if args.json != "-":
        print("\n".join(table(report)))
    if args.json is not None:
        write_report(json.dumps(to_json(report), indent=1) + "\n", args.json)
    return 1 if report.failed else 0


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise ReferenceMissingError(
            f"the reference needs PyTorch ({error}): pip install gecko-mlc[reference]; for the "
            "smaller build without CUDA, first pip install torch==2.13.0 from PyTorch's CPU index"
        ) from error


def _text_tokens(args: argparse.Namespace) -> np.ndarray:
    import numpy as np

    from gecko_mlc.runtime.tokenizer import load_tokenizer
    from gecko_mlc.validate.run import ValidationError

    tokenizer = load_tokenizer(args.model)
    try:
        text = args.text.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValidationError(f"{args.text} is not UTF-8 text: {error}") from error
    tokens = tokenizer.encode(text, bos=True)[: args.tokens]
    if len(tokens) < 2:
        raise ValidationError(f"{len(tokens)} tokens of {args.text}, wanted at least 2")
    return np.array(tokens, np.int32)
