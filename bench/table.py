"""The table at the end: our figures beside the raw limit, medians where there are repetitions."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from bench.figures import PEER, RAW_PEER, VARIANTS, Row
from bench.language import show
from bench.raw import PUBLISHES
from bench.workloads import LANGUAGE


class Shown(NamedTuple):
    """What of a workload's rows stands for it."""

    key: str
    unit: str
    less_is_better: bool = False


SHOWN: Final = {
    "W1": Shown("p50_ms", "ms p50", less_is_better=True),
    "W2": Shown("runs_s", "runs/s"),
    "W2@256": Shown("runs_s", "runs/s"),
    "W3": Shown("steps_s", "steps/s"),
    "W4": Shown("events_s", "events/s"),
    "flat-empty": Shown("runs_s", "runs/s"),
    "flat-full": Shown("runs_s", "runs/s"),
}
_OWN: Final = (*LANGUAGE, "map-linear")
_HEAD: Final = (
    "workload",
    "sync",
    "ours",
    "raw limit",
    "of the limit",
    "CPU ms/run",
    "with archive",
    "errors",
    "other cores",
)


def render(rows: Sequence[Row], syncs: Iterable[str]) -> str:
    """Return the whole table as text."""
    lines: list[tuple[str, ...]] = [_HEAD]
    notes: list[str] = []
    for sync in syncs:
        variant = VARIANTS[sync]
        for workload, shown in SHOWN.items():
            ours = _of(rows, PEER, variant, workload)
            raw = _raw_limit(rows, variant, workload, shown)
            if ours or raw is not None:
                lines.append(_line(workload, sync, shown, ours, raw))
        notes += _notes(rows, variant, sync)
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join([*text, *notes])


def _line(
    workload: str, sync: str, shown: Shown, ours: list[Row], raw: tuple[float, str] | None
) -> tuple[str, ...]:
    value = _median(ours, shown.key)
    ratio = "-"
    if value and raw is not None and raw[0]:
        ratio = f"{raw[0] / value if shown.less_is_better else value / raw[0]:.0%}"
    # Seconds per thousand runs are milliseconds per run.
    return (
        workload,
        sync,
        _figure(value, shown),
        "-" if raw is None else f"{_figure(raw[0], shown)} ({raw[1]})",
        ratio,
        _plain(_median(ours, "cpu_s_per_1k_runs")),
        _plain(_median(ours, "drained_cpu_s_per_1k_runs")),
        str(sum(int(row["errors"]) for row in ours)) if ours else "-",
        _plain(_median(ours, "other_cores")),
    )


def _notes(rows: Sequence[Row], variant: str, sync: str) -> list[str]:
    notes = []
    if idle := _of(rows, PEER, variant, "idle"):
        notes.append(
            f"idle, {sync}: ready after {_plain(_median(idle, 'ready_s'))} s, first run back after "
            f"{_plain(_median(idle, 'cold_start_s'))} s; {idle[-1]['procs']} processes, "
            f"RSS {_plain(_median(idle, 'rss_mb'))} MiB, PSS {_plain(_median(idle, 'pss_mb'))} MiB"
        )
        notes.append("  RSS by process: " + _by_process(idle[-1]["rss_mb_by_process"]))
    notes += [
        f"{workload}, {sync}: CPU ms/run by process: "
        + _by_process(ours[-1]["cpu_s_per_1k_runs_by_process"])
        + f"; load generator {ours[-1]['client_cpu_s_per_1k_runs']}"
        for workload in ("W2", "W2@256")
        if (ours := _of(rows, PEER, variant, workload))
    ]
    if flat := _of(rows, PEER, variant, "flat"):
        notes.append(
            f"flat, {sync}: W2 with {flat[-1]['facts']:,} facts in the log is "
            f"{_plain(_median(flat, 'ratio'))} of W2 on a new one; CPU ms/run "
            f"{_plain(_median(flat, 'full_cpu_s_per_1k_runs'))} instead of "
            f"{_plain(_median(flat, 'empty_cpu_s_per_1k_runs'))}"
        )
    notes += [show(row) for row in rows if row["variant"] == variant and row["workload"] in _OWN]
    notes += [
        f"WARNING: {row['workload']}, {sync}: {row['restarts']} restarts"
        for row in rows
        if row["peer"] == PEER and row["variant"] == variant and row.get("restarts")
    ]
    return notes


def _by_process(values: dict[str, float]) -> str:
    ordered = sorted(values.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value}" for name, value in ordered)


def _of(rows: Sequence[Row], peer: str, variant: str, workload: str) -> list[Row]:
    return [
        row
        for row in rows
        if (row["peer"], row["variant"], row["workload"]) == (peer, variant, workload)
    ]


def _raw_limit(
    rows: Sequence[Row], variant: str, workload: str, shown: Shown
) -> tuple[float, str] | None:
    """Return the better of the two ways to publish, and which it is."""
    found = [
        (value, publishes)
        for publishes in PUBLISHES
        if (value := _median(_of(rows, RAW_PEER, f"{variant}-{publishes}", workload), shown.key))
        is not None
    ]
    if not found:
        return None
    return min(found) if shown.less_is_better else max(found)


def _median(rows: Sequence[Row], key: str) -> float | None:
    values = [float(row[key]) for row in rows if key in row]
    return statistics.median(values) if values else None


def _figure(value: float | None, shown: Shown) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} {shown.unit}" if shown.less_is_better else f"{value:,.0f} {shown.unit}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
