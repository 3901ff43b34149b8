"""The comparison as rows that pass or fail, as a table for people and as JSON for machines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from gecko_mlc.config import GeckoConfig
from gecko_mlc.validate.compare import Difference, Prediction
from gecko_mlc.validate.run import PATHS, Comparison, op_tokens
from gecko_mlc.validate.tolerance import rounded_tolerance, tolerance


@dataclasses.dataclass(frozen=True)
class Row:
    """One operation or state tensor, on prefill's and decode's path.

    A path on which the library keeps it to itself is absent. ``rounded``: the differences of the
    reference in the library's 16-bit type, if it computes in one.
    """

    name: str
    tolerances: dict[str, float]
    paths: dict[str, Difference]
    rounded: dict[str, Difference]

    @property
    def passed(self) -> bool:
        return all(self.paths[path].within(self.tolerances[path]) for path in self.paths)


@dataclasses.dataclass(frozen=True)
class Report:
    """All of a validation.

    ``subject`` says what was compared: model, library, device, quantization, reference, tokens.
    ``text`` is "bytes" or "tokens", whichever the tokens of a text are, or None without a text.
    """

    subject: dict[str, Any]
    ops: list[Row]
    state: list[Row]
    paths: dict[str, Comparison]
    chunk_size: int
    op_tokens: int  # those whose operations were compared; the logits of all were
    text: str | None
    text_tolerance: float

    @property
    def prediction(self) -> Prediction:
        return self.paths["prefill"].prediction

    @property
    def failed(self) -> list[str]:
        """Names of the rows that failed, in the order of computation."""
        names = [row.name for row in (*self.ops, *self.state) if not row.passed]
        if self.text and not self.prediction.loss_within(self.text_tolerance):
            names.append("perplexity")
        return names


def make_report(
    subject: dict[str, Any],
    paths: dict[str, Comparison],
    config: GeckoConfig,
    quantization: str,
    checkpoint: bool,
    text: str | None,
) -> Report:
    """Rows with their tolerances; ``checkpoint``: the reference has unrounded matrices."""

    def row(kind: str, name: str) -> Row:
        found, rounded = (
            {
                path: getattr(paths[prefix + path], kind)[name]
                for path in PATHS
                if prefix + path in paths and name in getattr(paths[prefix + path], kind)
            }
            for prefix in ("", "rounded ")
        )
        limit = tolerance(name, quantization, checkpoint)
        limits = dict.fromkeys(found, limit)
        for path, difference in rounded.items():
            lost = difference.relative
            limits[path] = rounded_tolerance(name, quantization, checkpoint, lost)
        return Row(name, limits, found, rounded)

    def rows(kind: str) -> list[Row]:
        return [row(kind, name) for name in getattr(paths["prefill"], kind)]

    limit = tolerance("perplexity", quantization, checkpoint)
    return Report(
        subject,
        rows("ops"),
        rows("state"),
        paths,
        config.chunk_size,
        op_tokens(config),
        text,
        limit,
    )


def table(report: Report) -> Iterator[str]:
    """The report's lines, of at most 99 columns except where a path is longer."""
    for key, value in report.subject.items():
        yield f"{key + ':':14}{value}"
    yield ""
    decode = report.paths["decode"]
    stop = report.paths["prefill"].stop
    if stop > report.op_tokens:
        yield f"operations of the first {report.op_tokens} tokens; logits and state of all {stop}"
    read = [f"{path} [{report.paths[path].start}, {report.paths[path].stop})" for path in PATHS]
    yield f"{'':26}{read[0]:<30}{read[1]}"
    heading = f"{'max abs':>8}  {'relative':>8}  {'cosine':>8}"
    yield f"{'operation':24}{heading}    {heading}   within"
    yield from (_line(row) for row in report.ops)
    yield ""
    yield f"state after {report.paths['prefill'].stop} and {decode.stop} tokens"
    yield from (_line(row) for row in report.state)
    yield ""
    yield "end to end"
    for path in PATHS:
        prediction = report.paths[path].prediction
        logits = report.paths[path].ops["output.logits"]
        yield (
            f"  {path:8} logits: relative error {logits.relative:.1e}, largest "
            f"{logits.max_abs:.1e}, cosine {logits.cosine:.7f}"
        )
        if f"rounded {path}" in report.paths:
            lost = report.paths[f"rounded {path}"].ops["output.logits"].relative
            yield (
                f"  {'':8} PyTorch in this type: relative error {lost:.1e}, the library's is "
                f"{logits.relative / lost:.2f} of it"
            )
        yield (
            f"  {'':8} greedy agreement {100 * prediction.agreement:.2f} % "
            f"({prediction.agreed} of {prediction.rows})"
        )
    if report.text:
        yield from _text_lines(report)
    if report.paths["prefill"].stop <= 2 * report.chunk_size:
        yield (
            f"note: memory is first read at token {2 * report.chunk_size + 1}, which this did not "
            "reach; ask for more with --tokens"
        )
    yield ""
    failed = report.failed
    rows = len(report.ops) + len(report.state) + bool(report.text)
    if failed:
        yield f"FAILED: {len(failed)} of {rows} rows, {failed[0]} first"
    else:
        yield f"passed: {rows} rows"


def to_json(report: Report) -> dict[str, Any]:
    """Everything in the report; what is not a finite number is null."""
    return {
        "passed": not report.failed,
        "failed": report.failed,
        **report.subject,
        "ops": [_row_json(row) for row in report.ops],
        "state": [_row_json(row) for row in report.state],
        "end_to_end": {
            path: {
                "start": comparison.start,
                "stop": comparison.stop,
                **_difference_json(comparison.ops["output.logits"]),
                "greedy_agreement": comparison.prediction.agreement,
            }
            for path, comparison in report.paths.items()
        },
        "text": _text_json(report) if report.text else None,
    }


def _line(row: Row) -> str:
    hidden = f"{'inside another kernel':>28}"
    cells = (_cells(row.paths[path]) if path in row.paths else hidden for path in PATHS)
    limit = max(row.tolerances.values())
    return f"{row.name:24}{'    '.join(cells)}  {limit:7.0e}  {'ok' if row.passed else 'FAIL'}"


def _cells(difference: Difference) -> str:
    if difference.not_finite:
        share = f"{difference.not_finite} of {difference.count}"
        return f"{share + ' not finite':>28}"
    return f"{difference.max_abs:8.1e}  {difference.relative:8.1e}  {difference.cosine:8.6f}"


def _text_lines(report: Report) -> Iterator[str]:
    losses = _text_losses(report)
    yield f"  text     perplexity: library {_perplexity(losses[0]):.6f}, " + (
        f"reference {_perplexity(losses[1]):.6f} ({report.prediction.predicted} {report.text})"
    )
    if report.text == "bytes":
        found, expected = (loss / math.log(2.0) for loss in losses)
        yield f"           bits per byte: library {found:.6f}, reference {expected:.6f}"
    if not report.prediction.loss_within(report.text_tolerance):
        yield f"           FAIL: wanted losses within {report.text_tolerance:.0e} of each other"


def _text_losses(report: Report) -> tuple[float, float]:
    """Nats per token: the library's, the reference's."""
    prediction = report.prediction
    count = max(prediction.predicted, 1)
    return prediction.loss_found / count, prediction.loss_expected / count


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700.0 else math.inf


def _text_json(report: Report) -> dict[str, Any]:
    sides = dict(zip(("library", "reference"), _text_losses(report), strict=True))
    result: dict[str, Any] = {
        "predicted": report.prediction.predicted,
        "perplexity": {side: _number(_perplexity(loss)) for side, loss in sides.items()},
        "tolerance": report.text_tolerance,
    }
    if report.text == "bytes":
        result["bits_per_byte"] = {
            side: _number(loss / math.log(2.0)) for side, loss in sides.items()
        }
    return result


def _row_json(row: Row) -> dict[str, Any]:
    paths = {
        path: {"tolerance": row.tolerances[path], **_difference_json(difference)}
        for path, difference in row.paths.items()
    }
    for path, difference in row.rounded.items():
        if path in paths:
            paths[path]["rounded_reference"] = _number(difference.relative)
    return {"name": row.name, "passed": row.passed, **paths}


def _difference_json(difference: Difference) -> dict[str, Any]:
    return {
        "max_abs": _number(difference.max_abs),
        "relative": _number(difference.relative),
        "cosine": _number(difference.cosine),
        "not_finite": difference.not_finite,
        "count": difference.count,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
