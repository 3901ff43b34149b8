"""A benchmark's result as text."""

from __future__ import annotations

from collections.abc import Sequence

from gecko_mlc.bench.results import Result, Step


def text(result: Result) -> str:
    """The tables that ``gecko-mlc bench`` prints."""
    return "\n\n".join(
        [
            _head(result),
            _prefill(result),
            _decode(result),
            _generation(result),
            _products(result),
            *(_step(step) for step in result.steps),
            _memory(result),
        ]
    )


def _head(result: Result) -> str:
    limits = result.limits
    compiled = result.compile_seconds
    load = "" if result.load is None else f", load before the run {result.load:.1f}"
    threads = "" if limits.threads is None else f", {limits.threads} threads"
    copies = limits.copy_bandwidth
    lines = [
        f"command    {result.command}",
        f"date       {result.date} UTC, "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        f"model      {result.model}, {result.quantization}",
        f"library    target {result.target}"
        + ("" if compiled is None else f", compiled in {compiled:.1f} s"),
        f"machine    {result.processor}{threads}{load}",
        f"limits     reads {limits.read_bandwidth / 1e9:.1f} GB/s ({limits.read_by}), "
        + ("" if copies is None else f"copies {copies / 1e9:.1f} GB/s, ")
        + f"multiplies {limits.multiply_rate / 1e9:.0f} GFLOP/s ({limits.multiply_by})",
        f"reference  {result.reference or 'not measured'}",
    ]
    return "\n".join(lines)


def _prefill(result: Result) -> str:
    rows = [
        [
            f"{row.tokens}",
            row.products,
            _milliseconds(row.seconds),
            f"{row.tokens_per_second:,.0f}",
            _milliseconds(row.reference_seconds),
            _ratio(row.speedup),
        ]
        for row in result.prefill
    ]
    titles = ["tokens", "products by", "ms", "tokens/s", "reference ms", "speedup"]
    return _table("prefill, last logits only", titles, rows)


def _decode(result: Result) -> str:
    rows = [
        [
            f"{row.position}",
            f"{row.visible}",
            f"{row.batch}",
            _milliseconds(row.seconds),
            f"{row.tokens_per_second:,.0f}",
            f"{row.bytes / 1e6:.1f}",
            f"{row.bytes / row.seconds / 1e9:.1f}",
            _percent(row.of_limit),
            _milliseconds(row.reference_seconds),
            _ratio(row.speedup),
        ]
        for row in result.decode
    ]
    titles = ["position", "sees", "batch", "ms", "tokens/s", "MB", "GB/s", "of limit"]
    return _table("decode, one step", [*titles, "reference ms", "speedup"], rows)


def _generation(result: Result) -> str:
    rows = [
        [
            f"{row.prompt}",
            f"{row.tokens}",
            _milliseconds(row.seconds / row.tokens),
            f"{row.tokens_per_second:,.0f}",
            _milliseconds(row.reference_seconds and row.reference_seconds / row.tokens),
            _ratio(row.speedup),
        ]
        for row in result.generation
    ]
    titles = ["prompt", "tokens", "ms/token", "tokens/s", "reference ms", "speedup"]
    return _table("decode, many steps behind a prompt", titles, rows)


def _products(result: Result) -> str:
    rows = [
        [
            row.name,
            row.by,
            f"{row.m} x {row.k} x {row.n}",
            f"{row.rate / 1e9:.1f}",
            "-" if row.torch_rate is None else f"{row.torch_rate / 1e9:.1f}",
            _ratio(row.ratio),
        ]
        for row in result.products
    ]
    titles = ["product", "by", "m x k x n", "GFLOP/s", "torch.matmul", "ratio"]
    return _table("matrix products in score of a chunk", titles, rows)


def _step(step: Step) -> str:
    rows = []
    for row in sorted(step.operations, key=lambda row: -row.seconds):
        cost = ["-"] * 6
        if row.bytes is not None and row.operations is not None and row.of_limit is not None:
            cost = [
                f"{row.bytes / 1e6:.3f}",
                f"{row.bytes / row.seconds / 1e9:.2f}",
                f"{row.operations / 1e6:.2f}",
                f"{row.operations / row.seconds / 1e9:.2f}",
                str(row.bound_by),
                _percent(row.of_limit),
            ]
        times = [_microseconds(row.seconds), _microseconds(row.seconds / row.calls)]
        rows.append([row.name, f"{row.calls}", *times, _percent(row.of_step), *cost])
    each = "-" if step.between is None else _microseconds(step.rest / step.between)
    between = "-" if step.between is None else f"{step.between}"
    share = _percent(step.rest / step.seconds)
    rows.append(["rest", between, _microseconds(step.rest), each, share, *["-"] * 6])
    titles = ["kernel", "calls", "us", "us/call", "of step"]
    titles += ["MB", "GB/s", "Mop", "Gop/s", "bound by", "of limit"]
    title = f"{step.function}, {step.description}: {_milliseconds(step.seconds)} ms"
    return _table(f"{title}, reading {step.read_bandwidth / 1e9:.1f} GB/s", titles, rows)


def _memory(result: Result) -> str:
    memory = result.memory
    sizes = {
        "weights": memory.params,
        "state of a sequence": memory.slot,
        "workspace on the device": memory.workspace,
        "process before the model": memory.imported,
        "process with the model": memory.loaded,
        "private, before the model": memory.imported_private,
        **{f"private, at position {at}": size for at, size in memory.at.items()},
        "peak": memory.peak,
    }
    rows = [[name, _mebibytes(size)] for name, size in sizes.items() if size is not None]
    return _table("memory of what only runs the library", ["", "MiB"], rows)


def _table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as needed, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (titles, *rows)
    ]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3f}" if seconds < 0.1 else f"{seconds * 1e3:.1f}"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"
