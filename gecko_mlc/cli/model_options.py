"""Options that generate and chat share, and what they open."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gecko_mlc.runtime.engine import Engine
    from gecko_mlc.runtime.sampling import SamplingParams


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="model folder: convert-weight's and gen-config's")
    parser.add_argument(
        "--lib",
        type=Path,
        metavar="FILE",
        help="library made by compile (default: compiled for this machine once, then cached)",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="cpu, cuda, vulkan, metal; cuda:1, vulkan:1 is the second (default: cpu)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")


def add_sampling_arguments(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """The parser gets every default from the model's configuration, except ``max_tokens``."""
    group = parser.add_argument_group("sampling (defaults from mlc-chat-config.json)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy and exact")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="keep the likeliest that hold P of the probability"
    )
    group.add_argument(
        "--repetition-penalty", type=float, metavar="R", help="above 1 avoids tokens already seen"
    )
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"tokens to generate at most (default: {max_tokens})",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text (may be repeated; adds to the configuration's)",
    )
    parser.add_argument("--stats", action="store_true", help="print counts and speed to stderr")


def open_engine(args: argparse.Namespace, slots: int) -> Engine:
    """The engine for the arguments, after compiling a library if none is given or cached."""
    from gecko_mlc.runtime.engine import Engine

    library = args.lib
    if library is None:
        from gecko_mlc.compile.cache import cached_library

        library = cached_library(args.model, target=args.device, on_progress=_progress)
    return Engine(args.model, library, device=args.device, threads=args.threads, slots=slots)


def sampling_params(args: argparse.Namespace, chat_config: dict[str, Any]) -> SamplingParams:
    """Sampling as the flags say, else as the model's configuration does."""
    from gecko_mlc.runtime.sampling import SamplingParams

    named = {
        name: chat_config.get(name) if getattr(args, name) is None else getattr(args, name)
        for name in ("temperature", "top_p", "repetition_penalty")
    }
    given = {name: value for name, value in named.items() if value is not None}
    return SamplingParams(top_k=args.top_k, seed=args.seed, **given)


def stop_arguments(args: argparse.Namespace, chat_config: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of Generation that say when to stop."""
    return {
        "max_tokens": args.max_tokens,
        "stop_token_ids": chat_config.get("stop_token_ids") or [],
        "stop_strings": [*(chat_config.get("stop_strings") or []), *args.stop],
    }


def _progress(line: str) -> None:
    print(f"gecko-mlc: {line}", file=sys.stderr, flush=True)
