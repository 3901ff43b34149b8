"""Inline PTX assembly, turned into C++: each instruction becomes a call of a function in ptx.h."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

# What the letters of an operand's kind mean in C++.
_TYPES = {
    "d": "uint64_t",
    "f": "float",
    "h": "uint16_t",
    "i": "int32_t",
    "p": "bool",
    "s": "uint32_t",
    "w": "uint32_t",
}
_ELEMENTS = {
    "b8": "uint8_t",
    "u8": "uint8_t",
    "s8": "int8_t",
    "b16": "uint16_t",
    "u16": "uint16_t",
    "s16": "int16_t",
    "b32": "uint32_t",
    "u32": "uint32_t",
    "s32": "int32_t",
    "f32": "float",
    "b64": "uint64_t",
    "u64": "uint64_t",
    "s64": "int64_t",
    "f64": "double",
    "f16": "__half",
    "bf16": "__nv_bfloat16",
    "pred": "bool",
}
_ELEMENT = "|".join(_ELEMENTS)
_SHARED = "(?:.shared(?:::cta|::cluster)?)?"
_SCOPE = f"(?:.release|.acquire|.relaxed)?(?:.cta|.cluster)?{_SHARED}"
_TO_SHARED = ".shared::(?:cluster|cta).global(?:.tile)?.mbarrier::complete_tx::bytes"
_WGMMA = r"wgmma.mma_async.sync.aligned.m64n\d+k16.f32.(f16|bf16).\1"

# An instruction (the whole of it, as a pattern in which "." is a point and <any> stands for any
# modifiers), its function, and its operands' kinds in order.
# A kind's last letter: "a" an address, "s" one in shared memory as a number, "m" a tensor map with
# coordinates, "t" a value of the type that ends the instruction, or as in _TYPES. Before it: "="
# is written, "&" passed by its address. After it: "?" may lack.
# Types that the pattern finds are template arguments. A function after "=" returns the result.
# Without a function there is nothing to do.
_RULES: list[tuple[str, str, str]] = [
    # tensor cores
    (r"mma.sync.aligned.m16n8k16.row.col.f32.(f16|bf16).\1.f32", "mma", "=f w w f"),
    (f"ldmatrix.sync.aligned.m8n8.x[124]{_SHARED}.b16", "ldmatrix", "=w a"),
    (
        f"ldmatrix.sync.aligned.m8n8.x[124].trans{_SHARED}.b16",
        "ldmatrix_trans",
        "=w a",
    ),
    (f"stmatrix.sync.aligned.m8n8.x[124]{_SHARED}.b16", "stmatrix", "a w"),
    (
        f"stmatrix.sync.aligned.m8n8.x[124].trans{_SHARED}.b16",
        "stmatrix_trans",
        "a w",
    ),
    # asynchronous copies
    (
        "cp.async.c[ag].shared(?:::cta)?.global(?:.L2::(?:64|128|256)B)?",
        "cp_async",
        "a a w w?",
    ),
    ("cp.async.commit_group", "cp_async_commit_group", ""),
    ("cp.async.wait_group", "cp_async_wait_group", "w"),
    ("cp.async.wait_all", "cp_async_wait_all", ""),
    # mbarriers, bulk copies, clusters
    (f"mbarrier.init{_SHARED}.b64", "mbarrier_init", "a w"),
    (f"mbarrier.arrive{_SCOPE}.b64", "mbarrier_arrive", "=d a w?"),
    (f"mbarrier.arrive.expect_tx{_SCOPE}.b64", "mbarrier_arrive_expect_tx", "=d a w"),
    (f"mbarrier.(expect|complete)_tx{_SCOPE}.b64", "mbarrier_{0}_tx", "a w"),
    (f"mbarrier.(try|test)_wait.parity{_SCOPE}.b64", "mbarrier_{0}_wait_parity", "=p a w w?"),
    (f"mbarrier.(try|test)_wait{_SCOPE}.b64", "mbarrier_{0}_wait", "=p a d w?"),
    (f"mbarrier.inval{_SHARED}.b64", "", "a"),
    (f"cp.async.bulk{_TO_SHARED}", "cp_async_bulk", "s a w s"),
    (f"cp.async.bulk.tensor.[1-5]d{_TO_SHARED}", "cp_async_bulk_tensor", "s m s"),
    (
        f"cp.async.bulk.tensor.[1-5]d{_TO_SHARED}.multicast::cluster",
        "cp_async_bulk_tensor_multicast",
        "s m s h",
    ),
    ("mapa.shared::cluster.u32", "mapa", "=w w w"),
    ("barrier.cluster.arrive(?:.release|.relaxed)?(?:.aligned)?", "cluster_arrive", ""),
    ("barrier.cluster.wait(?:.acquire)?(?:.aligned)?", "cluster_wait", ""),
    # products of a warpgroup, the left operand from shared memory or from registers
    (_WGMMA, "wgmma", "&f d d p w w w w"),
    (_WGMMA, "wgmma", "&f w d p w w w"),
    ("wgmma.fence.sync.aligned", "", ""),
    ("wgmma.commit_group.sync.aligned", "wgmma_commit_group", ""),
    ("wgmma.wait_group.sync.aligned", "wgmma_wait_group", "w"),
    # barriers and warps
    ("(?:bar|barrier)(?:.cta)?.sync(?:.aligned)?", "bar_sync", "w w?"),
    ("(?:bar|barrier)(?:.cta)?.arrive(?:.aligned)?", "bar_arrive", "w w"),
    ("bar.warp.sync", "__syncwarp", "w"),
    ("elect.sync", "elect", "=w =p w"),
    ("redux.sync.(add|min|max|and|or|xor).([bus]32)", "redux_{0}<{1}>", "=t t w"),
    ("griddepcontrol.wait", "grid_dependency_wait", ""),
    ("griddepcontrol.launch_dependents", "", ""),
    ("(?:fence|membar)<any>", "", ""),
    ("setmaxnreg.(?:inc|dec).sync.aligned.u32", "", "w"),
    ("nanosleep.u32", "__nanosleep", "w"),
    # memory
    (f"ld<any>.({_ELEMENT})", "load<{0}>", "=t a"),
    (f"st<any>.({_ELEMENT})", "store<{0}>", "a t"),
    (f"red<any>.add(?:.noftz)?.({_ELEMENT})", "atomic_add<{0}>", "a t"),
    (f"atom<any>.add(?:.noftz)?.({_ELEMENT})", "atomic_add<{0}>", "=t a t"),
    (f"atom<any>.exch.({_ELEMENT})", "atomic_exchange<{0}>", "=t a t"),
    (f"atom<any>.cas.({_ELEMENT})", "atomic_cas<{0}>", "=t a t t"),
    ("prefetch<any>", "", "a"),
    ("cp.async.bulk.prefetch.L2.global", "", "a w"),
    ("cvta.to.shared.u64", "cvta_to_shared", "=d a"),
    # arithmetic
    (f"mov.({_ELEMENT})", "mov<{0}>", "=t t"),
    ("cvt.u32.u64", "mov<uint32_t>", "=w d"),
    ("cvt.u64.u32", "mov<uint64_t>", "=d w"),
    ("cvt.rn.f16x2.f32", "cvt_f16x2", "=w f f"),
    ("cvt.rn.bf16x2.f32", "cvt_bf16x2", "=w f f"),
    (f"setp.(eq|ne|lt|le|gt|ge).({_ELEMENT})", "setp_{0}<{1}>", "=p t t"),
    (f"selp.({_ELEMENT})", "selp<{0}>", "=t t t p"),
    ("ex2.approx(?:.ftz)?.f32", "=std::exp2", "=f f"),
    ("lg2.approx(?:.ftz)?.f32", "=std::log2", "=f f"),
    ("tanh.approx.f32", "=std::tanh", "=f f"),
    ("rcp.(?:approx|rn)(?:.ftz)?.f32", "=__frcp_rn", "=f f"),
    ("rsqrt.approx(?:.ftz)?.f32", "=rsqrtf", "=f f"),
    ("sqrt.(?:approx|rn)(?:.ftz)?.f32", "=std::sqrt", "=f f"),
    ("fma.rn(?:.ftz)?.f32", "=std::fma", "=f f f f"),
    ("(?:add|max|min|mul)(?:.rn)?(?:.ftz)?.f32", "=f32_{name}", "=f f f"),
]

_ASSEMBLY = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')
_LABEL = re.compile(r"([A-Za-z_$][\w$]*)\s*:(?!:)\s*")


class AssemblyError(ValueError):
    """Assembly that the emulator cannot run."""


def translate_assembly(source: str) -> str:
    """Every ``asm(...)`` statement of C++ source becomes a block of C++."""
    pieces: list[str] = []
    done = 0
    while match := _ASSEMBLY.search(source, done):
        end = _closing(source, match.end() - 1)
        block = _Block(source[match.end() : end], number=len(pieces))
        pieces += [source[done : match.start()], block.text()]
        done = source.index(";", end) + 1
    return "".join(pieces) + source[done:]


def _closing(text: str, at: int) -> int:
    """Where the parenthesis that opens at ``at`` closes."""
    depth = 0
    while True:
        if text[at] == '"':
            literal = _LITERAL.match(text, at)
            assert literal is not None
            at = literal.end()
            continue
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1


def _split(text: str, separator: str) -> list[str]:
    """The parts of text between separators that no bracket or string encloses."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == '"':
            literal = _LITERAL.match(text, at)
            assert literal is not None
            at = literal.end()
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        if depth == 0 and text[at] == separator:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [part.strip() for part in [*parts, text[start:]]]


@dataclasses.dataclass
class _Statement:
    labels: list[str]
    text: str


def _statements(assembly: str) -> Iterator[_Statement]:
    """Instructions and declarations, each with the labels before it; scopes are left out."""
    assembly = re.sub(r"//[^\n]*|/\*.*?\*/", " ", assembly, flags=re.S)
    labels: list[str] = []
    while assembly := assembly.lstrip():
        if assembly[0] in "{}":
            assembly = assembly[1:]
        elif label := _LABEL.match(assembly):
            labels.append(label[1])
            assembly = assembly[label.end() :]
        else:
            text, _, assembly = assembly.partition(";")
            yield _Statement(labels, text.strip())
            labels = []
    if labels:
        yield _Statement(labels, "")


def _rule(opcode: str, operands: int) -> tuple[re.Match[str], str, list[str]]:
    """The first rule for the instruction with so many operands: match, function, kinds."""
    known = False
    for pattern, function, kinds in _RULES:
        pattern = pattern.replace(".", r"\.").replace("<any>", r"(?:\.[\w:]+)*?")
        match = re.fullmatch(pattern, opcode)
        if match is None:
            continue
        known = True
        wanted = kinds.split()
        if sum(not kind.endswith("?") for kind in wanted) <= operands <= len(wanted):
            return match, function, wanted
    what = f"{opcode} with {operands} operands" if known else f"the instruction {opcode}"
    raise AssemblyError(f"the emulated device does not know {what}")


class _Block:
    """One asm statement."""

    def __init__(self, body: str, number: int) -> None:
        template, *operands = _split(body, ":")
        self._number = number
        raw = "".join(literal[1] for literal in _LITERAL.finditer(template))
        self._assembly = raw.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "")
        # Outputs, then inputs; the third list is of clobbers.
        self._operands = []
        for operand in (part for group in operands[:2] for part in _split(group, ",") if part):
            constraint, _, expression = operand.partition("(")
            self._operands.append((constraint.strip().strip('"'), f"({expression}"))

    def text(self) -> str:
        declarations, lines = [], []
        for statement in _statements(self._assembly):
            lines += [f"{self._label(label)}:;" for label in statement.labels]
            if statement.text.startswith(".reg"):
                _, kind, names = statement.text.split(None, 2)
                registers = ", ".join(self._register(name.strip()) for name in names.split(","))
                declarations.append(f"{_ELEMENTS[kind.lstrip('.')]} {registers};")
            elif statement.text:
                lines.append(self._instruction(statement.text))
        return "{ " + "\n".join([*declarations, *lines]) + " }"

    def _label(self, name: str) -> str:
        return f"label_{name}_{self._number}"

    @staticmethod
    def _register(name: str) -> str:
        return f"register_{name.lstrip('%')}"

    def _instruction(self, text: str) -> str:
        condition = ""
        if text.startswith("@"):
            guard, text = text[1:].split(None, 1)
            condition = f"if ({'!' if guard[0] == '!' else ''}{self._value(guard.lstrip('!'))}) "
        opcode, _, rest = text.partition(" ")
        operands = _split(rest, ",") if rest.strip() else []
        if opcode in ("bra", "bra.uni"):
            return f"{condition}goto {self._label(operands[0])};"
        return condition + self._call(opcode, operands)

    def _call(self, opcode: str, operands: list[str]) -> str:
        # `d|p` are two operands.
        operands = [part for operand in operands for part in _split(operand, "|")]
        match, function, kinds = _rule(opcode, len(operands))
        types = [_ELEMENTS.get(group, group) for group in match.groups()]
        if "{" in function:
            function = function.format(*types, name=opcode.split(".")[0])
        elif types:
            function += f"<{', '.join(types)}>"
        return _Call(self, function, types, kinds).text(operands)

    def _value(self, operand: str) -> str:
        """The C++ expression of a register, an operand of the asm statement, or a number."""
        if re.fullmatch(r"%\d+", operand):
            return self._operands[int(operand[1:])][1]
        if re.fullmatch(r"-?(?:0[xX][\da-fA-F]+|\d+)", operand):
            return operand
        name = operand.lstrip("%")
        if name in _SPECIAL:
            return _SPECIAL[name]
        return self._register(name)


_SPECIAL = {
    "laneid": "emulator::current->lane",
    "globaltimer_lo": "0u",
    "cluster_ctarank": "emulator::current->block->rank_in_cluster",
    "cluster_ctaid.x": "emulator::current->block->index_in_cluster.x",
    "cluster_ctaid.y": "emulator::current->block->index_in_cluster.y",
    "cluster_ctaid.z": "emulator::current->block->index_in_cluster.z",
}


class _Call:
    """An instruction's call: operands in, function, operands out."""

    def __init__(self, block: _Block, function: str, types: list[str], kinds: list[str]) -> None:
        self._block, self._function, self._types, self._kinds = block, function, types, kinds
        self._before: list[str] = []
        self._after: list[str] = []
        self._arguments: list[str] = []

    def text(self, operands: list[str]) -> str:
        if not self._function:
            return ";"
        for operand, kind in zip(operands, self._kinds, strict=False):
            self._operand(operand, kind.rstrip("?"))
        if self._function.startswith("="):
            result, *arguments = self._arguments
            call = f"{result}[0] {self._function}({', '.join(arguments)});"
        else:
            call = f"{self._function}({', '.join(self._arguments)});"
        return " ".join(
            ["{ using namespace emulator::ptx;", *self._before, call, *self._after, "}"]
        )

    def _operand(self, operand: str, kind: str) -> None:
        name = f"operand_{len(self._arguments)}"
        self._arguments.append(name)
        letter = kind[-1]
        if letter == "a":
            base, plus, offset = operand.strip("[]").partition("+")
            value = self._block._value(base.strip())
            self._before.append(f"auto* const {name} = address({value}) {plus} {offset};")
            return
        if letter == "m":
            tensor_map, coordinates = _split(operand.strip("[]"), ",")
            self._before.append(f"auto* const {name} = address({self._block._value(tensor_map)});")
            self._operand(coordinates, "i")
            return
        if letter == "s":
            operand = operand.strip("[]")
        element = self._types[-1] if letter == "t" else _TYPES[letter]
        group = operand.startswith("{")
        members = _split(operand.strip("{}"), ",")
        values = [None if m == "_" else self._block._value(m) for m in members]
        if kind[0] == "&":
            pointers = ", ".join(f"&{value}" for value in values)
            self._before.append(f"{element}* const {name}[] = {{{pointers}}};")
        elif kind[0] == "=":
            self._before.append(f"{element} {name}[{len(values)}];")
            self._after += [
                f"put({value}, {name}[{i}]);" for i, value in enumerate(values) if value is not None
            ]
        elif group:
            cast = ", ".join(f"as<{element}>({value})" for value in values)
            self._before.append(f"const {element} {name}[] = {{{cast}}};")
        else:
            self._before.append(f"const {element} {name} = as<{element}>({values[0]});")
