"""Costs against naive loops that count every operation and every element they touch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from gecko_mlc.checkpoint.mapping import parameters
from gecko_mlc.config import GeckoConfig
from tir_kernels import cost
from tir_kernels.cost import Cost, Span, Work

CONFIG = GeckoConfig(
    num_layers=3, model_dim=6, z_dim=8, value_dim=12, num_heads=2, ffn_hidden_dim=5,
    vocab_size=11, cema_ndim=3, chunk_size=4, timenorm_num_groups=3, layernorm_num_groups=2,
)  # fmt: skip
ITEMSIZE = 2


class Number:
    """Counts the operations on it, whatever its value would be."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def _operation(self, *_operands) -> Number:
        self.counter.operations += 1
        return self

    __add__ = __sub__ = __mul__ = __truediv__ = __neg__ = _operation
    max = exp = sqrt = log = inverse = _operation


class Tensor:
    """Remembers which elements were read and written."""

    def __init__(self, counter: Counter, itemsize: int) -> None:
        self.counter, self.itemsize = counter, itemsize
        self.read: set = set()
        self.written: set = set()

    def __getitem__(self, index) -> Number:
        # What the loops wrote themselves before is no input.
        if index not in self.written:
            self.read.add(index)
        return Number(self.counter)

    def __setitem__(self, index, value) -> None:
        self.written.add(index)

    @property
    def bytes(self) -> int:
        return (len(self.read) + len(self.written)) * self.itemsize


class Counter:
    """Tensors by what they belong to; ``cost`` is what was done with them."""

    def __init__(self) -> None:
        self.operations = 0
        self.tensors: dict[str, list[Tensor]] = {"weights": [], "state": [], "activations": []}

    def __call__(self, kind: str, count: int = 1, itemsize: int = 4):
        made = [Tensor(self, itemsize) for _ in range(count)]
        self.tensors[kind] += made
        return made if count > 1 else made[0]

    @property
    def zero(self) -> Number:
        return Number(self)

    @property
    def cost(self) -> Cost:
        moved = {kind: sum(t.bytes for t in tensors) for kind, tensors in self.tensors.items()}
        return Cost(**moved, operations=self.operations)


def silu(x: Number) -> Number:
    return x / ((-x).exp() + x)


def softmax(row: list[Number]) -> None:
    for x in row:
        x.max()
    for x in row:
        x = (x - x).exp()
        x + x
    for x in row:
        x / x


def steps(work: Work):
    """(row, slot, position) of every step."""
    row = 0
    for slot, span in enumerate(work.spans):
        for position in range(span.start, span.start + span.rows):
            yield row, slot, position
            row += 1


def embed(w: Work, c: Counter) -> None:
    table, x = c("weights", itemsize=ITEMSIZE), c("activations")
    for row, _, _ in steps(w):
        for d in range(CONFIG.model_dim):
            x[row, d] = table[row, d]


def moments(x: Tensor, row: int, group: range) -> Number:
    total = x[row, group[0]]
    for d in group:
        total + x[row, d]
    total / total
    for d in group:
        deviation = x[row, d] - total
        total + deviation * deviation
    return total / total


def groups(count: int) -> list[range]:
    size = CONFIG.model_dim // count
    return [range(g * size, (g + 1) * size) for g in range(count)]


def timenorm(w: Work, c: Counter) -> None:
    (x, y), (weight, bias), (mean, var) = c("activations", 2), c("weights", 2), c("state", 2)
    for row, slot, _ in steps(w):
        for g, group in enumerate(groups(CONFIG.timenorm_num_groups)):
            now = moments(x, row, group)
            for state in (mean, var):
                held = state[slot, g]
                state[slot, g] = held + (now - held) * now
                held * now  # bias correction
            deviation = (now + now).sqrt().inverse()
            for d in group:
                y[row, d] = (x[row, d] - now) * deviation * weight[d] + bias[d]
    # The state of one step is the next one's: read once, written once.
    assert mean.read == mean.written


def cema(w: Work, c: Counter) -> None:
    (x, y), (p, q, gamma), h = c("activations", 2), c("weights", 3), c("state")
    for row, slot, _ in steps(w):
        for d in range(CONFIG.model_dim):
            out = x[row, d]
            for n in range(CONFIG.cema_ndim):
                re, im = h[slot, d, n, 0], h[slot, d, n, 1]
                qr, qi = q[d, n, 0], q[d, n, 1]
                h[slot, d, n, 0] = qr * re - qi * im + p[d, n] * x[row, d]
                h[slot, d, n, 1] = qr * im + qi * re
                out = out + (gamma[d, n, 0] * re - gamma[d, n, 1] * im)
            y[row, d] = out


def rmsnorm(w: Work, c: Counter) -> None:
    (x, y), weight = c("activations", 2), c("weights")
    for row, _, _ in steps(w):
        for group in groups(CONFIG.layernorm_num_groups):
            total = c.zero
            for d in group:
                total + x[row, d] * x[row, d]
            scale = (total / total + total).sqrt().inverse()
            for d in group:
                y[row, d] = x[row, d] * scale * weight[d]


def layernorm(w: Work, c: Counter) -> None:
    (x, y), (weight, bias) = c("activations", 2), c("weights", 2)
    for row, _, _ in steps(w):
        for group in groups(CONFIG.layernorm_num_groups):
            mean = moments(x, row, group)
            scale = (mean + mean).sqrt().inverse()
            for d in group:
                y[row, d] = (x[row, d] - mean) * scale * weight[d] + bias[d]


def linear(
    rows: int, inputs: int, outputs: int, c: Counter, ending: Callable[[Number, int, int], Number]
) -> None:
    (x, y), weight = c("activations", 2), c("weights", itemsize=ITEMSIZE)
    for row in range(rows):
        for column in range(outputs):
            total = c.zero
            for k in range(inputs):
                total + x[row, k] * weight[column, k]
            y[row, column] = ending(total, row, column)


def wv(w: Work, c: Counter) -> None:
    bias = c("weights")
    linear(
        w.rows, CONFIG.model_dim, CONFIG.value_dim, c, lambda y, row, column: silu(y + bias[column])
    )


def wzrh(w: Work, c: Counter) -> None:
    bias = c("weights")
    s, e, d = CONFIG.z_dim, CONFIG.value_dim, CONFIG.model_dim

    def ending(y: Number, row: int, column: int) -> Number:
        y = y + bias[column]
        return silu(y) if s <= column < s + e else y

    linear(w.rows, d, s + e + d, c, ending)


def attention_inputs(w: Work, c: Counter) -> None:
    (z, v), queries = c("activations", 2), c("activations")
    keys, memory_keys, values = c("state", 3, ITEMSIZE)
    (gamma, beta), rope = c("weights", 2), c("weights")
    size, chunk = CONFIG.z_head_dim, CONFIG.chunk_size

    def rotate(angle: int) -> None:
        for pair in range(size // 2):
            cos, sin = rope[angle, pair, 0], rope[angle, pair, 1]
            cos * cos - sin * sin
            cos * sin + sin * cos

    for row, slot, position in steps(w):
        for head in range(CONFIG.num_heads):
            features = range(head * size, (head + 1) * size)
            total = c.zero
            for f in features:
                total + z[row, f] * z[row, f]
            scale = (total / total + total).sqrt().inverse()
            for f in features:
                normed = z[row, f] * scale
                for role in range(4):
                    normed * gamma[role, f] + beta[role, f]
                for which in range(3):
                    queries[row, which, f] = normed
                keys[slot, position, f] = memory_keys[slot, position, f] = normed
            softmax([total for _ in features])
            if head < CONFIG.rope_heads:
                for angle in (position % chunk, chunk + position % chunk, position % chunk):
                    rotate(angle)
        for e in range(CONFIG.value_dim):
            values[slot, position, e] = v[row, e]


def attention(w: Work, c: Counter) -> None:
    queries, gate, gated = c("activations", 3)
    (keys, values), memory = c("state", 2, ITEMSIZE), c("state")
    size, width, chunk = CONFIG.z_head_dim, CONFIG.v_head_dim, CONFIG.chunk_size
    for row, slot, position in steps(w):
        first = max(0, position // chunk - 1) * chunk
        for head in range(CONFIG.num_heads):
            features = range(head * size, (head + 1) * size)
            scores = []
            for key in range(first, position + 1):
                which = position // chunk - key // chunk
                score = c.zero
                for f in features:
                    score + queries[row, which, f] * keys[slot, key, f]
                scores.append(score)
            softmax(scores)
            for e in range(head * width, (head + 1) * width):
                total = c.zero
                for key in range(first, position + 1):
                    total + total * values[slot, key, e]
                total = total * gate[row, e]
                if position >= 2 * chunk:
                    for f in features:
                        total + queries[row, 2, f] * memory[slot, head, f, e]
                gated[row, e] = total


def wh2(w: Work, c: Counter) -> None:
    h1, x = c("activations", 2)
    linear(
        w.rows, CONFIG.value_dim, CONFIG.model_dim, c,
        lambda y, row, column: y + h1[row, column] + x[row, column],
    )  # fmt: skip


def fc1(w: Work, c: Counter) -> None:
    (x, y), (one, three) = c("activations", 2), c("weights", 2, ITEMSIZE)
    for row, _, _ in steps(w):
        for column in range(CONFIG.ffn_hidden_dim):
            total = c.zero
            for k in range(CONFIG.model_dim):
                total + x[row, k] * one[column, k]
                total + x[row, k] * three[column, k]
            y[row, column] = silu(total) * total


def fc2(w: Work, c: Counter) -> None:
    residual = c("activations")
    linear(
        w.rows, CONFIG.ffn_hidden_dim, CONFIG.model_dim, c,
        lambda y, row, column: y + residual[row, column],
    )  # fmt: skip


def logits(w: Work, c: Counter) -> None:
    linear(w.logits_rows, CONFIG.model_dim, CONFIG.num_outputs, c, lambda total, row, column: total)


def last_row(w: Work, c: Counter) -> None:
    x, y = c("activations", 2)
    for d in range(CONFIG.model_dim):
        y[d] = x[d]


def memory_commit(w: Work, c: Counter) -> None:
    (keys, values), (memory, log_norm) = c("state", 2, ITEMSIZE), c("state", 2)
    size, width, chunk = CONFIG.z_head_dim, CONFIG.v_head_dim, range(CONFIG.chunk_size)
    for slot in range(len(w.spans)):
        for head in range(CONFIG.num_heads):
            features = range(head * size, (head + 1) * size)
            columns = range(head * width, (head + 1) * width)
            for t in chunk:
                softmax([keys[slot, t, f] for f in features])
            for f in features:
                softmax([keys[slot, t, f] for t in chunk])
                x = log_norm[slot, f]
                level = x + x.log()
                top = level.max(x)
                level = top + ((level - top).exp() + (x - top).exp()).log()
                log_norm[slot, f] = level
                (level - level).exp()
            for e in columns:
                for t in chunk:
                    total = values[slot, t, e] - c.zero
                    for f in features:
                        total + total * memory[slot, f, e]
                for f in features:
                    update = c.zero
                    for _ in chunk:
                        update + update * update
                    old = memory[slot, f, e]
                    memory[slot, f, e] = old + update * (update - old)


NAIVE = {
    function.__name__: function
    for function in (
        embed, timenorm, cema, rmsnorm, wv, wzrh, attention_inputs, attention, wh2, layernorm,
        fc1, fc2, last_row, logits,
    )
}  # fmt: skip
PREFILLS = [Work(CONFIG, ITEMSIZE, (Span(start, rows),), 1) for start, rows in [
    (0, 1), (0, 4), (1, 2), (4, 4), (6, 2), (8, 3), (22, 1),
]]  # fmt: skip
DECODES = [
    Work(CONFIG, ITEMSIZE, (Span(5),), 1),
    Work(CONFIG, ITEMSIZE, (Span(0), Span(6), Span(9), Span(403)), 4),
]


@pytest.mark.parametrize("name", NAIVE)
@pytest.mark.parametrize("work", PREFILLS + DECODES, ids=lambda work: str(work.spans))
def test_cost_is_what_naive_loops_count(name: str, work: Work) -> None:
    counter = Counter()
    NAIVE[name](work, counter)
    assert getattr(cost, name)(work) == counter.cost


@pytest.mark.parametrize("slots", [1, 3])
def test_cost_of_commit_is_what_naive_loops_count(slots: int) -> None:
    work = Work(CONFIG, ITEMSIZE, (Span(8, 0),) * slots, 0)
    counter = Counter()
    memory_commit(work, counter)
    assert cost.memory_commit(work) == counter.cost


def test_the_switches_of_a_configuration_count() -> None:
    work = DECODES[0]
    other = dataclasses.replace(
        CONFIG, swiglu=False, rescale_nffn=True, num_rope_heads=0, scale_emb=True
    )
    switched = dataclasses.replace(work, config=other)
    dim, hidden = CONFIG.model_dim, CONFIG.ffn_hidden_dim
    with_gate, without = cost.fc1(work), cost.fc1(switched)
    assert with_gate.weights == 2 * without.weights == 2 * hidden * dim * ITEMSIZE
    assert with_gate.operations - without.operations == (2 * dim + 1) * hidden
    assert cost.fc2(switched) == cost.fc2(work) + Cost(weights=4 * dim, operations=dim)
    assert cost.embed(switched) == cost.embed(work) + Cost(operations=dim)
    turned, plain = cost.attention_inputs(work), cost.attention_inputs(switched)
    assert turned.operations - plain.operations == 9 * CONFIG.z_dim
    assert turned.weights - plain.weights == 2 * 4 * CONFIG.z_head_dim


@pytest.mark.parametrize("quantization, itemsize", [("q0f32", 4), ("q0bf16", 2)])
@pytest.mark.parametrize("preset", ["tiny", "small", "7b"])
def test_a_step_reads_every_weight_once(preset: str, quantization: str, itemsize: int) -> None:
    """But of the embedding and of the rotary table the rows it needs, and no priors."""
    config = GeckoConfig.preset(preset)
    costs = cost.forward(Work(config, itemsize, (Span(12345),), 1))
    wanted = config.model_dim * itemsize + 2 * 4 * config.z_head_dim * config.num_layers
    for parameter in parameters(config, quantization):
        if parameter.name not in ("embed.weight", "rope.table") and "prior" not in parameter.name:
            wanted += parameter.nbytes
    assert sum(value.weights for value in costs.values()) == wanted


def test_far_positions_cost_what_near_ones_do() -> None:
    """A multiple of two chunks later, past the first two, nothing differs."""
    near, far = (Work(CONFIG, ITEMSIZE, (Span(start, 3),), 1) for start in (8, 4_000_008))
    assert cost.forward(near) == cost.forward(far)
