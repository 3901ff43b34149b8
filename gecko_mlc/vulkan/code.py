"""The instructions of a kernel's function: value numbering, registers and structured control flow.

Values without side effects are computed once as long as the block that computed them dominates. A
register is a variable of the function; within straight code its loads take the value last stored.
What nothing uses in the end is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from gecko_mlc.vulkan.enumerants import Op, StorageClass
from gecko_mlc.vulkan.folding import fold
from gecko_mlc.vulkan.spirv import Module, instruction

# Dropped where nothing uses their result.
_REMOVABLE = frozenset(
    (
        *(Op.Load, Op.AccessChain, Op.CompositeConstruct, Op.CompositeExtract, Op.Select, Op.Not),
        *range(Op.ConvertFToU, Op.Bitcast + 1),
        *range(Op.FNegate, Op.FRem + 1),
        *range(Op.IsNan, Op.BitwiseAnd + 1),
        Op.ExtInst,
    )
)


class Code:
    """The body of ``module``'s function, as it grows."""

    def __init__(self, module: Module):
        self.module = module
        self._prologue: list[tuple[int, ...]] = []
        self._body: list[tuple[int, ...]] = []
        self._numbered: dict[tuple[int, ...], int] = {}
        self._order: list[tuple[int, ...]] = []
        self._at_entry: dict[tuple[int, ...], int] = {}
        self._registers: dict[int, int] = {}  # to the type they point to
        self._loaded: set[int] = set()
        self._counters: set[int] = set()  # what loops count with, used before it is computed
        self._held: dict[int, int] = {}  # the value last stored to a register
        self._block = module.new_id()
        self._first = self._block

    # Instructions.

    def value(self, opcode: int, kind: int, *operands: int) -> int:
        """The result, of type ``kind``, of an instruction without side effects."""
        folded = fold(self.module, opcode, kind, operands)
        if folded is not None:
            return folded
        key = (opcode, kind, *operands)
        if key not in self._numbered:
            self._numbered[key] = self.result(opcode, kind, *operands)
            self._order.append(key)
        return self._numbered[key]

    def result(self, opcode: int, kind: int, *operands: int) -> int:
        """The result of an instruction that has to be executed where it stands."""
        result = self.module.new_id()
        self._body.append(instruction(opcode, kind, result, *operands))
        return result

    def effect(self, opcode: int, *operands: int) -> None:
        """An instruction without a result."""
        self._body.append(instruction(opcode, *operands))

    def at_entry(self, opcode: int, kind: int, *operands: int) -> int:
        """As ``value``, but computed at the function's beginning, for all of it."""
        key = (opcode, kind, *operands)
        if key not in self._at_entry:
            result = self._at_entry[key] = self.module.new_id()
            self._prologue.append(instruction(opcode, kind, result, *operands))
        return self._at_entry[key]

    def glsl(self, number: int, kind: int, *operands: int) -> int:
        """The result of an instruction of GLSL.std.450."""
        return self.value(Op.ExtInst, kind, self.module.glsl(), number, *operands)

    # Registers.

    def register(self, kind: int) -> int:
        """A new variable of the function."""
        result = self.module.new_id()
        self._registers[result] = kind
        return result

    def array(self, kind: int) -> int:
        """A new variable of the function that is accessed by element, at any time."""
        result = self.register(kind)
        self._loaded.add(result)
        return result

    def read(self, register: int) -> int:
        if register not in self._held:
            self._loaded.add(register)
            self._held[register] = self.result(Op.Load, self._registers[register], register)
        return self._held[register]

    def write(self, register: int, value: int) -> None:
        self._held[register] = value
        self.effect(Op.Store, register, value)

    # Control flow.

    def branch(
        self,
        condition: int,
        then: Callable[[], int | None],
        otherwise: Callable[[], int | None] | None = None,
        kind: int | None = None,
    ) -> int | None:
        """``then`` where the condition holds, else ``otherwise``; with ``kind``, the value of the
        one that ran, which is of that type.
        """
        known = self.module.constant_value(condition)
        if known is not None:
            chosen = then if known else otherwise
            return chosen() if chosen is not None else None
        taken, skipped, merge = (self.module.new_id() for _ in range(3))
        if otherwise is None:
            skipped = merge
        self.effect(Op.SelectionMerge, merge, 0)
        self.effect(Op.BranchConditional, condition, taken, skipped)
        arms = [(taken, then)] if otherwise is None else [(taken, then), (skipped, otherwise)]
        results: list[int] = []
        before = dict(self._held)
        for label, arm in arms:
            self._held = dict(before)
            with self._nested(label):
                value = arm()
                if kind is not None:
                    assert value is not None, "an arm without the value of the branch"
                    results += [value, self._block]
                self.effect(Op.Branch, merge)
            before = {r: v for r, v in before.items() if self._held.get(r) == v}
        self._held = before
        self._label(merge)
        if kind is None:
            return None
        return self.result(Op.Phi, kind, *results)

    def loop(
        self,
        kind: int,
        first: int,
        step: int,
        condition: Callable[[int], int],
        body: Callable[[int], None],
        written: Iterable[int],
    ) -> None:
        """``body`` of a counter of type ``kind`` that starts at ``first`` and grows by ``step``, as
        long as the condition of it holds. The body may store to the registers ``written``.
        """
        header, test, inside, next_, merge, following = (self.module.new_id() for _ in range(6))
        for register in written:
            self._held.pop(register, None)
        before, entered_from = dict(self._held), self._block
        self.effect(Op.Branch, header)
        with self._nested(header):
            counter = self.module.new_id()
            self._body.append(
                instruction(Op.Phi, kind, counter, first, entered_from, following, next_)
            )
            self.effect(Op.LoopMerge, merge, next_, 0)
            self.effect(Op.Branch, test)
            self._label(test)
            self.effect(Op.BranchConditional, condition(counter), inside, merge)
            self._label(inside)
            body(counter)
            self.effect(Op.Branch, next_)
            self._label(next_)
            self._body.append(instruction(Op.IAdd, kind, following, counter, step))
            self._counters.add(following)
            self.effect(Op.Branch, header)
        self._held = before
        self._label(merge)

    def _label(self, label: int) -> None:
        self._body.append(instruction(Op.Label, label))
        self._block = label

    @contextlib.contextmanager
    def _nested(self, label: int) -> Iterator[None]:
        """Blocks from ``label`` on that do not dominate what follows them."""
        known = len(self._order)
        self._label(label)
        yield
        for key in self._order[known:]:
            del self._numbered[key]
        del self._order[known:]

    # The end.

    def finish(self) -> list[tuple[int, ...]]:
        """All instructions of the function, from its first label on."""
        self.effect(Op.Return)
        lines = [*self._prologue, *self._body]
        kept = _used(lines, self._counters, set(self._registers) - self._loaded)
        variables = [
            instruction(
                Op.Variable,
                self.module.pointer(StorageClass.Function, kind),
                register,
                StorageClass.Function,
            )
            for register, kind in self._registers.items()
        ]
        return [instruction(Op.Label, self._first), *variables, *kept]


def _used(
    lines: list[tuple[int, ...]], used_before: set[int], never_loaded: set[int]
) -> list[tuple[int, ...]]:
    """Without stores to registers that are never loaded, and without unused results.

    But for ``used_before``, results are computed before they are used, so that one pass from the
    end on finds all uses.
    """
    used = set(used_before)
    kept = []
    for line in reversed(lines):
        opcode = line[0] & 0xFFFF
        if opcode == Op.Store:
            if line[1] in never_loaded:
                continue
            used.update(line[1:])
        elif opcode not in _REMOVABLE or line[2] in used:
            used.update(line[1:])
        else:
            continue
        kept.append(line)
    return kept[::-1]
