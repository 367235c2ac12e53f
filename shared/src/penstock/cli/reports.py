"""``penstock observability``: archive status, cost and profile reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock.cli.display import console, print_json, status_text, table
from penstock.cli.gateway import gateway, send
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, Since, Until, find_run
from penstock.cli.time_ranges import instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.text import Text

    from penstock.client.calls import QueryValue
    from penstock.contracts.archive_reports import CostLine
    from penstock.contracts.usage import Usage

_HIGHEST: Final = "bold red"
_SLOW: Final = "bold yellow"


Name = Annotated[
    str | None, typer.Option(help="Only runs of this agent or workflow.", show_default=False)
]

app = group()


def _span(since: str | None, until: str | None, name: str | None) -> dict[str, QueryValue]:
    return {
        "since": instant(since, option="--since"),
        "until": instant(until, option="--until"),
        "name": name,
    }


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show the lag of the archive, and runs and cost of the last 24 hours."""
    from penstock.contracts.archive import ArchiveStatus
    from penstock.contracts.archive_reports import CostReportView, ProfileReportView

    day = {"since": datetime.now(UTC) - timedelta(days=1)}
    archive = send(context, ArchiveStatus, "GET", "/v1/archive")
    cost = send(context, CostReportView, "GET", "/v1/reports/cost", params=day)
    profile = send(context, ProfileReportView, "GET", "/v1/reports/profile", params=day)
    with gateway(context) as client:
        counts = {
            status: sum(1 for _ in client.runs(status=[status], limit=1000))
            for status in ("created", "running", "waiting", "paused")
        }
    if as_json:
        print_json({"archive": archive, "open_runs": counts, "cost": cost, "profile": profile})
        return
    screen = console()
    lag = archive.lag_messages
    state = "rebuilding" if archive.rebuilding else "behind" if lag else "up to date"
    screen.print(f"archive   {state}, {lag} facts behind", style="yellow" if lag else "green")
    open_runs = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    screen.print(f"open runs {open_runs or 'none'}")
    screen.print(
        f"24 hours  {profile.runs} runs ended, {_milliseconds(profile.mean_wall_ms)} each; "
        f"{cost.total.model_calls} model calls, {_usd(cost.total)}"
    )
    if profile.slowest:
        screen.print(f"slowest   {profile.slowest}")
    if cost.most_expensive_provider:
        screen.print(f"dearest   {cost.most_expensive_provider}")


@app.command("cost-report")
def cost_report(
    context: typer.Context,
    since: Since = None,
    until: Until = None,
    name: Name = None,
    as_json: AsJson = False,
) -> None:
    """Show the cost of model calls by provider, model, agent and day."""
    from penstock.contracts.archive_reports import CostReportView

    params = _span(since, until, name)
    report = send(context, CostReportView, "GET", "/v1/reports/cost", params=params)
    if as_json:
        print_json(report)
        return
    screen = console()
    total = report.total
    screen.print(f"{report.runs} runs, {total.model_calls} model calls, {_usd(total)}")
    dearest = report.most_expensive_provider
    if dearest is not None:
        text = f"most expensive provider: {dearest} ({report.providers[0].share:.0%})"
        screen.print(text, style=_HIGHEST)
    if report.unknown_prices:
        text = f"price unknown, not in the sums: {', '.join(report.unknown_prices)}"
        screen.print(text, style=_SLOW)
    for title, lines in (
        ("provider", report.providers),
        ("model", report.models),
        ("agent", report.agents),
        ("day", report.days),
    ):
        if lines:
            screen.print()
            rows = [
                _cost_row(line, _HIGHEST if title == "provider" and line.key == dearest else "")
                for line in lines
            ]
            screen.print(table((title, "calls", "tokens in", "tokens out", "share", "cost"), rows))


def _cost_row(line: CostLine, style: str) -> list[Text]:
    usage = line.usage
    cells = (
        line.key or "(unknown)",
        str(usage.model_calls),
        str(usage.input_tokens),
        str(usage.output_tokens),
        f"{line.share:.0%}",
        _usd(usage),
    )
    return _styled(cells, style)


def _styled(cells: Sequence[str], style: str) -> list[Text]:
    from rich.text import Text

    return [Text(cell, style=style) for cell in cells]


@app.command("profile-report")
def profile_report(
    context: typer.Context,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Id of one run, or its beginning; default: the latest runs.",
            show_default=False,
            callback=find_run,
        ),
    ] = None,
    since: Since = None,
    until: Until = None,
    name: Name = None,
    threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the time above which a node is a bottleneck."),
    ] = 0.5,
    runs: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of latest runs in the report.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Show where runs spend their time. The slowest node and bottlenecks are highlighted."""
    if run_id is not None:
        _profile_of_run(context, run_id, threshold=threshold, as_json=as_json)
        return
    from penstock.contracts.archive_reports import ProfileReportView

    params = {**_span(since, until, name), "threshold": threshold, "runs": runs}
    report = send(context, ProfileReportView, "GET", "/v1/reports/profile", params=params)
    if as_json:
        print_json(report)
        return
    screen = console()
    screen.print(f"{report.runs} runs, {_milliseconds(report.mean_wall_ms)} each")
    _highlights(screen, report.slowest, report.bottlenecks, report.threshold)
    rows = []
    for node in report.nodes:
        place = f"{node.name}/{node.node_id}"
        cells = (
            place,
            str(node.runs),
            _milliseconds(node.mean_ms),
            _milliseconds(node.longest_ms),
            _milliseconds(node.mean_wait_ms),
            f"{node.mean_share:.0%}",
            str(node.bottleneck_in),
            f"${node.cost_usd:.6f}",
        )
        rows.append(_styled(cells, _style(place, report.slowest, place in report.bottlenecks)))
    if rows:
        columns = ("node", "runs", "mean", "longest", "queue wait", "share", "bottleneck in")
        screen.print(table((*columns, "cost"), rows))


def _profile_of_run(
    context: typer.Context, run_id: str, *, threshold: float, as_json: bool
) -> None:
    from penstock.contracts.archive_reports import ProfileOfRun

    path, params = "/v1/runs/{}/profile", {"threshold": threshold}
    answer = send(context, ProfileOfRun, "GET", path, ids=[run_id], params=params)
    if as_json:
        print_json(answer)
        return
    screen, profile = console(), answer.profile
    wall = _milliseconds(profile.wall_ms)
    screen.print(answer.run_id, answer.name, status_text(answer.status), wall)
    slowest = profile.nodes[0].node_id if profile.nodes else None
    _highlights(screen, slowest, profile.bottlenecks, profile.threshold)
    rows = []
    for node in profile.nodes:
        cells = (
            node.node_id,
            node.kind,
            node.name,
            str(node.steps),
            str(node.attempts),
            _milliseconds(node.queue_wait_ms),
            _milliseconds(node.duration_ms),
            f"{node.share:.0%}",
            f"${node.cost_usd:.6f}",
        )
        rows.append(_styled(cells, _style(node.node_id, slowest, node.bottleneck)))
    if rows:
        columns = ("node", "kind", "name", "steps", "attempts", "queue wait", "took", "share")
        screen.print(table((*columns, "cost"), rows))
    costs = [
        (line.provider or "(unknown)", line.model, _usd(line.usage)) for line in profile.models
    ]
    if costs:
        screen.print()
        screen.print(table(("provider", "model", "cost"), costs))


def _style(place: str, slowest: str | None, bottleneck: bool) -> str:
    return _HIGHEST if bottleneck else _SLOW if place == slowest else ""


def _highlights(
    screen: Console, slowest: str | None, bottlenecks: Sequence[str], threshold: float
) -> None:
    if slowest is not None:
        screen.print(f"slowest: {slowest}", style=_SLOW)
    if bottlenecks:
        text = f"bottlenecks, above {threshold:.0%} of the time: {', '.join(bottlenecks)}"
        screen.print(text, style=_HIGHEST)


def _usd(usage: Usage) -> str:
    return f"${usage.cost_usd:.6f}" + (" or more" if usage.unknown_price else "")


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
