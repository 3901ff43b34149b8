"""Makes parsing a kernel and expanding a ``T.inline`` cheap.

TVM 0.27 looks up the source text of every frame on the stack: for each inline it expands, to find
the running parser, and for each function, to see whether a class surrounds it. That took three
quarters of the time to compile a library. The same searches over bare frames cost nothing.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from types import FrameType, SimpleNamespace

from tvm.script.parser.core.parser import ScriptMacro
from tvm.tirx.script.parser import entry


@dataclasses.dataclass(frozen=True)
class _Frame:
    frame: FrameType
    code_context: None = None  # the source text, which nothing here needs


def _frames(depth: int):
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _find_parser_def(self):
    for frame in _frames(2):
        parser = frame.f_globals.get(ScriptMacro.parser_object_name)
        if parser is not None:
            return parser
    raise RuntimeError(f"{ScriptMacro.parser_object_name} not available")


def _stack() -> list[_Frame]:
    return [_Frame(frame) for frame in _frames(2)]


ScriptMacro._find_parser_def = _find_parser_def
entry.inspect = SimpleNamespace(**{**vars(inspect), "stack": _stack})
