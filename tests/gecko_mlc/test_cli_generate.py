"""generate and chat with an engine that shouts back what it last read."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gecko_mlc.cli import main

END = 256


class Sequence:
    """Continues every text it reads with that text in capitals, then the end token."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.script: list[int] = []
        self.closed = False

    @property
    def position(self) -> int:
        return len(self.read)

    def prefill(self, tokens: list[int]) -> np.ndarray:
        self.read += tokens
        text = bytes(token for token in tokens if token < 256)
        self.script = [*text.upper(), END]
        return self.logits()

    def logits(self) -> np.ndarray:
        logits = np.zeros(257, np.float32)
        logits[self.script[0] if self.script else END] = 8.0
        return logits

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.read))

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine:
    """Records how it was made; Ctrl-C comes while it decodes the token ``interrupt_at``."""

    samples_on_device = False
    made: list[Engine] = []
    interrupt_at: int | None = None

    def __init__(self, model: Path, library: Path, **options: Any) -> None:
        self.library, self.options = library, options
        self.chat_config = json.loads((model / "mlc-chat-config.json").read_text())
        self.sequences: list[Sequence] = []
        Engine.made.append(self)

    def new_sequence(self) -> Sequence:
        assert sum(not sequence.closed for sequence in self.sequences) < self.options["slots"]
        self.sequences.append(Sequence())
        return self.sequences[-1]

    def load_sequence(self, path: Path) -> Sequence:
        read = json.loads(path.read_text())
        sequence = self.new_sequence()
        sequence.read = read
        return sequence

    def decode(self, sequences: list[Sequence], tokens: list[int]) -> np.ndarray:
        (sequence,), (token,) = sequences, tokens
        if token == Engine.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)
        sequence.read.append(token)
        sequence.script = sequence.script[1:]
        return sequence.logits()[None]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder; the engine and the library cache are stand-ins."""
    engine = types.ModuleType("gecko_mlc.runtime.engine")
    engine.__dict__.update(Engine=Engine)
    cache = types.ModuleType("gecko_mlc.compile.cache")

    def cached_library(model_dir: Path, target: str, on_progress: Callable[[str], None]) -> Path:
        on_progress(f"compiling for {target}")
        return model_dir / f"cached-{target}.so"

    cache.__dict__.update(cached_library=cached_library)
    compiler = types.ModuleType("gecko_mlc.compile")
    for module in (engine, compiler, cache):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Engine, "made", [])
    configure(tmp_path)
    return tmp_path


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C as at a terminal, also where the tests run in the background and it is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def configure(folder: Path, **changes: object) -> None:
    values = {"tokenizer": "bytes", "stop_token_ids": [END], "temperature": 0.0, **changes}
    (folder / "mlc-chat-config.json").write_text(json.dumps(values))


def type_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_the_continuation_is_printed_and_nothing_else(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(model), "-p", "hello ", "--lib", "x.so"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "HELLO \n" and captured.err == ""
    (engine,) = Engine.made
    assert engine.library == Path("x.so")
    assert engine.options == {"device": "cpu", "threads": None, "slots": 1}
    assert engine.sequences[0].read == list(b"hello HELLO ") and engine.sequences[0].closed


def test_without_lib_the_cached_one(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(model), "-p", "a", "--threads", "2"]) == 0
    assert Engine.made[0].library == model / "cached-cpu.so"
    assert Engine.made[0].options["threads"] == 2
    captured = capsys.readouterr()
    assert captured.out == "A\n" and captured.err == "gecko-mlc: compiling for cpu\n"


def test_prompts_from_file_and_standard_input(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", str(model), "--lib", "x.so"]
    file = model / "prompt.txt"
    file.write_bytes("naïve\r\n".encode())
    assert main([*arguments, "--prompt-file", str(file)]) == 0
    assert bytes(Engine.made[0].sequences[0].read[:8]) == "naïve\r\n".encode()
    type_in(monkeypatch, "from a pipe")
    assert main(arguments) == 0
    assert "FROM A PIPE\n" in capsys.readouterr().out
    file.write_bytes(b"\xff\xfe")
    assert main([*arguments, "--prompt-file", str(file)]) == 2
    assert "prompt.txt is not UTF-8 text" in capsys.readouterr().err
    assert main([*arguments, "--prompt-file", str(model / "absent")]) == 2
    assert main([*arguments, "-p", ""]) == 2
    assert "the prompt has no tokens" in capsys.readouterr().err


def test_limits_stops_and_statistics(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", str(model), "--lib", "x.so", "-p", "one two three"]
    assert main([*arguments, "--max-tokens", "3", "--stats"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "ONE\n"
    assert captured.err.startswith("prompt: 13 tokens, ")
    assert "generated: 3 tokens" in captured.err and "ended by length" in captured.err
    assert main([*arguments, "--stop", "THREE", "--stop", " TW"]) == 0
    assert capsys.readouterr().out == "ONE\n"
    configure(model, stop_strings=["NE"], stop_token_ids=[])
    assert main([*arguments, "--stop", "X"]) == 0
    assert capsys.readouterr().out == "O\n"
    assert main([*arguments, "--stop", ""]) == 2
    assert main([*arguments, "--max-tokens", "0"]) == 2


def test_sampling_flags_override_the_models_defaults(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(model), "--lib", "x.so", "-p", "abcdef", "--max-tokens", "40"]

    def text(*flags: str) -> str:
        assert main([*arguments, *flags]) == 0
        return capsys.readouterr().out

    assert text() == "ABCDEF\n"  # greedy, as the model's configuration says
    hot = text("--temperature", "9", "--seed", "1")
    assert hot == text("--temperature", "9", "--seed", "1") != "ABCDEF\n"
    assert hot != text("--temperature", "9", "--seed", "2")
    assert text("--temperature", "9", "--top-k", "1") == "ABCDEF\n"
    assert text("--temperature", "9", "--top-p", "0.001") == "ABCDEF\n"
    configure(model, temperature=9.0, top_p=0.001)
    assert text() == "ABCDEF\n"
    assert text("--top-p", "1", "--seed", "1") == hot
    assert main([*arguments, "--top-p", "2", "--temperature", "-1"]) == 2
    error = capsys.readouterr().err
    assert "temperature is -1.0" in error and "top_p is 2.0" in error


def chat(model: Path, monkeypatch: pytest.MonkeyPatch, lines: str, *flags: str) -> list[Sequence]:
    type_in(monkeypatch, lines)
    assert main(["chat", str(model), "--lib", "x.so", *flags]) == 0
    return Engine.made[-1].sequences


def test_chat_keeps_its_state_between_turns(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sequence,) = chat(model, monkeypatch, "ab\n\ncd\n/exit\nignored\n", "--stats")
    captured = capsys.readouterr()
    assert captured.out == "AB\nCD\n"
    # The end token of the first answer is read before the second turn, each token once.
    assert sequence.read == [*b"abAB", END, *b"cdCD"] and sequence.closed
    assert captured.err.count("ended by stop") == 2 and "9 tokens read in all" in captured.err


def test_chat_template_and_bos(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = {
        "system": "S|",
        "user_prefix": "U:",
        "user_suffix": "|",
        "assistant_prefix": "A:",
        "assistant_suffix": "#",
    }
    configure(model, conv_template=template, bos_token_id=300)
    (sequence, fresh) = chat(model, monkeypatch, "x\ny\n/reset\nz\n")
    assert sequence.read == [300, *b"S|U:x|A:S|U:X|A:", END, *b"#U:y|A:#U:Y|A:"]
    assert fresh.read == [300, *b"S|U:z|A:S|U:Z|A:"] and sequence.closed


def test_chat_saves_and_loads(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = model / "state file"
    first, second = chat(model, monkeypatch, f"ab\n/save {file}\ncd\n/load {file}\nef\n/stats\n")
    assert json.loads(file.read_text()) == [*b"abAB", END]  # complete, with the end token
    assert first.read == [*b"abAB", END, *b"cdCD"]
    assert second.read == [*b"abAB", END, *b"efEF"]
    captured = capsys.readouterr()
    assert captured.out.startswith("AB\nCD\nEF\nprompt: 2 tokens")
    assert "9 tokens read in all" in captured.out and captured.err == ""


def test_chat_outlives_mistakes(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "/help\n/jump\n/save\n/load absent\n/stats\nab\n"
    (sequence,) = chat(model, monkeypatch, lines)
    captured = capsys.readouterr()
    assert "/load FILE" in captured.out and captured.out.endswith("AB\n")
    assert "nothing was generated yet; 0 tokens read in all" in captured.out
    assert "no command /jump; /help lists them" in captured.err
    assert "/save needs a file name" in captured.err
    assert "No such file or directory: 'absent'" in captured.err
    assert sequence.read == list(b"abAB")


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_stops_the_answer_and_not_the_chat(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "interrupt_at", ord("B"))
    (sequence,) = chat(model, monkeypatch, "abcd\n/stats\nef\n")
    out = capsys.readouterr().out
    assert out.startswith("ABC\n") and "ended by cancelled" in out and out.endswith("EF\n")
    assert sequence.read == list(b"abcdABCefCEF")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_elsewhere_ends_the_program(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "interrupt_at", ord("B"))
    assert main(["generate", str(model), "--lib", "x.so", "-p", "abcd"]) == 130
    assert capsys.readouterr().out.startswith("AB")


def test_unknown_template_keys(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(model, conv_template={"roles": {}, "system": ""})
    type_in(monkeypatch, "")
    assert main(["chat", str(model), "--lib", "x.so"]) == 2
    assert "conv_template has roles; known are system, user_prefix" in capsys.readouterr().err
