"""``gecko-mlc chat``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gecko_mlc.cli.model_options import (
    add_model_arguments,
    add_sampling_arguments,
    open_engine,
    sampling_params,
    stop_arguments,
)

if TYPE_CHECKING:
    from gecko_mlc.runtime.engine import Engine, Sequence
    from gecko_mlc.runtime.sampling import SamplingParams
    from gecko_mlc.runtime.tokenizer import Tokenizer

HELP = "talk with a model, turn by turn"

COMMANDS = """\
/help        this list
/reset       forget everything said so far
/stats       counts and speed of the last answer, and how much was read
/save FILE   write the state of the conversation
/load FILE   continue from a saved state
/exit        leave (so does the end of input)
Ctrl-C stops an answer; a second time, the program."""

EPILOG = f"""\
The conversation is a state of constant size, kept between turns: nothing is read twice, and there
is no limit to its length. What is typed goes through the conv_template of mlc-chat-config.json, or
to the model as it is when there is none (gecko-mlc gen-config --help).

commands:
{COMMANDS}

examples:
  gecko-mlc chat models/gecko-7b
  gecko-mlc chat models/demo --lib demo.so --temperature 0 --max-tokens 80
"""

TEMPLATE_KEYS = ("system", "user_prefix", "user_suffix", "assistant_prefix", "assistant_suffix")


class ChatError(ValueError):
    """A conversation template or command that cannot be followed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_sampling_arguments(parser, max_tokens=1024)


def run(args: argparse.Namespace) -> int:
    from gecko_mlc.runtime.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(args.model)
    # One slot for the conversation, one for a state being loaded before the other is given up.
    engine = open_engine(args, slots=2)
    params = sampling_params(args, engine.chat_config)
    chat = Chat(engine, tokenizer, params, stop_arguments(args, engine.chat_config))
    interactive = sys.stdin.isatty()
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # makes input() edit lines and remember them
        print("/help lists the commands", file=sys.stderr)
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            break
        if line.split()[:1] == ["/exit"]:
            break
        if line.startswith("/"):
            _report(chat.command, line)
        elif line:
            _report(chat.answer, line)
            if args.stats:
                print(chat.report(), file=sys.stderr)
    chat.close()
    return 0


class Chat:
    """One conversation: a sequence of the engine, and what it has yet to read."""

    _sequence: Sequence
    _pending: list[int]

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, params: SamplingParams, stops: dict[str, Any]
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._params = params
        self._stops = stops
        self._template = _template(engine.chat_config)
        self._last = "nothing was generated yet"
        self._start(engine.new_sequence())

    def close(self) -> None:
        self._sequence.close()

    def report(self) -> str:
        return f"{self._last}; {self._sequence.position} tokens read in all"

    def answer(self, line: str) -> None:
        """Print the answer to ``line`` as it is generated."""
        from gecko_mlc.runtime.generation import Generation

        generation = Generation(
            self._engine,
            self._sequence,
            self._tokenizer,
            self._pending + self._turn(line),
            self._sampler,
            **self._stops,
        )
        try:
            with _interrupts(generation.cancel):
                for piece in generation:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        finally:
            self._pending = generation.pending
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._last = f"{generation.statistics}; ended by {generation.finish_reason}"

    def command(self, line: str) -> None:
        """Do what a line beginning with a slash says; ChatError when there is no such command."""
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        if name in ("/save", "/load") and not argument:
            raise ChatError(f"{name} needs a file name")
        if name == "/help":
            print(COMMANDS)
        elif name == "/stats":
            print(self.report())
        elif name == "/reset":
            self._continue_with(self._engine.new_sequence())
        elif name == "/save":
            self._save(Path(argument))
        elif name == "/load":
            self._continue_with(self._engine.load_sequence(Path(argument)))
        else:
            raise ChatError(f"no command {name}; /help lists them")

    def _start(self, sequence: Sequence) -> None:
        from gecko_mlc.runtime.sampling import Sampler

        self._sequence = sequence
        self._sampler = Sampler(self._params)
        self._pending = []

    def _continue_with(self, sequence: Sequence) -> None:
        self._sequence.close()
        self._start(sequence)

    def _save(self, path: Path) -> None:
        if self._pending:  # the state is all that is saved, so it has to be complete
            self._sequence.prefill(self._pending)
            self._pending = []
        self._sequence.save(path)

    def _turn(self, line: str) -> list[int]:
        """Tokens of what the user said, with what the template puts around it."""
        template = self._template
        first = self._sequence.position == 0 and not self._pending
        before = template["system"] if first else template["assistant_suffix"]
        text = before + template["user_prefix"] + line + template["user_suffix"]
        return self._tokenizer.encode(text + template["assistant_prefix"], bos=first)


def _template(chat_config: dict[str, Any]) -> dict[str, str]:
    given = chat_config.get("conv_template") or {}
    unknown = sorted(set(given) - set(TEMPLATE_KEYS))
    if unknown:
        raise ChatError(
            f"conv_template has {', '.join(unknown)}; known are {', '.join(TEMPLATE_KEYS)}"
        )
    return {key: given.get(key, "") for key in TEMPLATE_KEYS}


def _report(action: Callable[[str], None], line: str) -> None:
    """Do ``action``; a mistake in a command or file ends the line, not the conversation."""
    try:
        action(line)
    except (ValueError, OSError) as error:
        from gecko_mlc.cli import is_for_the_user

        if not is_for_the_user(error):
            raise
        print(f"gecko-mlc: error: {error}", file=sys.stderr)


@contextlib.contextmanager
def _interrupts(cancel: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C call ``cancel`` and the second one interrupt, as it does outside."""

    def interrupted(*_: Any) -> None:
        signal.signal(signal.SIGINT, previous)
        cancel()

    previous = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
