"""``penstock observability``: reports of cost and time, with what stands out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from rich.text import Text

from penstock.cli.api import Api
from penstock.cli.display import console, print_json, status_text, table
from penstock.cli.spans import instant
from penstock.target import Target

_DEAREST: Final = "bold red"
_SLOW: Final = "bold yellow"


def _params(since: str | None, until: str | None, name: str | None) -> dict[str, str | int]:
    given = {
        "since": instant(since, option="--since"),
        "until": instant(until, option="--until"),
        "name": name,
    }
    return {key: value for key, value in given.items() if value is not None}


def show_status(target: Target, *, as_json: bool) -> None:
    """Show how far the archive is, and what ran and cost in the last day."""
    since = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    with Api(target) as api:
        archive = api.call("GET", "/v1/archive")
        cost = api.call("GET", "/v1/reports/cost", params={"since": since})
        profile = api.call("GET", "/v1/reports/profile", params={"since": since})
        counts = {
            status: len(list(api.pages("/v1/runs", {"status": status}, 1000)))
            for status in ("created", "running", "waiting", "paused")
        }
    if as_json:
        print_json({"archive": archive, "open_runs": counts, "cost": cost, "profile": profile})
        return
    screen = console()
    lag = archive["lag_messages"]
    state = "rebuilding" if archive["rebuilding"] else "behind" if lag else "up to date"
    screen.print(Text(f"archive   {state}, {lag} facts behind", style="yellow" if lag else "green"))
    open_runs = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    screen.print(f"open runs {open_runs or 'none'}")
    screen.print(
        f"24 hours  {profile['runs']} runs ended, {_milliseconds(profile['mean_wall_ms'])} each; "
        f"{cost['total']['model_calls']} model calls, {_usd(cost['total'])}"
    )
    if profile["slowest"]:
        screen.print(f"slowest   {profile['slowest']}")
    if cost["most_expensive_provider"]:
        screen.print(f"dearest   {cost['most_expensive_provider']}")


def show_cost(
    target: Target, *, since: str | None, until: str | None, name: str | None, as_json: bool
) -> None:
    """Show what model calls cost."""
    with Api(target) as api:
        report = api.call("GET", "/v1/reports/cost", params=_params(since, until, name))
    if as_json:
        print_json(report)
        return
    screen = console()
    total = report["total"]
    screen.print(f"{report['runs']} runs, {total['model_calls']} model calls, {_usd(total)}")
    dearest = report["most_expensive_provider"]
    if dearest is not None:
        share = report["providers"][0]["share"]
        screen.print(Text(f"most expensive provider: {dearest} ({share:.0%})", style=_DEAREST))
    if report["unknown_prices"]:
        models = ", ".join(report["unknown_prices"])
        screen.print(Text(f"price unknown, not in the sums: {models}", style=_SLOW))
    for title, lines in (
        ("provider", report["providers"]),
        ("model", report["models"]),
        ("agent", report["agents"]),
        ("day", report["days"]),
    ):
        if not lines:
            continue
        screen.print()
        rows = [
            _cost_row(line, stands_out=title == "provider" and line["key"] == dearest)
            for line in lines
        ]
        screen.print(table((title, "calls", "tokens in", "tokens out", "share", "cost"), rows))


def _cost_row(line: dict[str, Any], *, stands_out: bool) -> tuple[Text, ...]:
    usage = line["usage"]
    cells = (
        line["key"] or "(unknown)",
        str(usage["model_calls"]),
        str(usage["input_tokens"]),
        str(usage["output_tokens"]),
        f"{line['share']:.0%}",
        _usd(usage),
    )
    return tuple(Text(cell, style=_DEAREST if stands_out else "") for cell in cells)


def show_profile(
    target: Target,
    wanted: dict[str, str | None],
    *,
    threshold: float,
    runs: int,
    as_json: bool,
) -> None:
    """Show where the latest runs spent their time."""
    params: dict[str, Any] = {
        **_params(wanted["since"], wanted["until"], wanted["name"]),
        "threshold": str(threshold),
        "runs": runs,
    }
    with Api(target) as api:
        report = api.call("GET", "/v1/reports/profile", params=params)
    if as_json:
        print_json(report)
        return
    screen = console()
    screen.print(f"{report['runs']} runs, {_milliseconds(report['mean_wall_ms'])} each")
    _highlights(screen, report["slowest"], report["bottlenecks"], report["threshold"])
    if not report["nodes"]:
        return
    rows = []
    for node in report["nodes"]:
        place = f"{node['name']}/{node['node_id']}"
        cells = (
            place,
            str(node["runs"]),
            _milliseconds(node["mean_ms"]),
            _milliseconds(node["longest_ms"]),
            _milliseconds(node["mean_wait_ms"]),
            f"{node['mean_share']:.0%}",
            str(node["bottleneck_in"]),
            f"${node['cost_usd']:.6f}",
        )
        style = _DEAREST if place in report["bottlenecks"] else ""
        style = style or (_SLOW if place == report["slowest"] else "")
        rows.append(tuple(Text(cell, style=style) for cell in cells))
    columns = ("node", "runs", "mean", "longest", "queue wait", "share", "bottleneck in", "cost")
    screen.print(table(columns, rows))


def show_run_profile(target: Target, run_id: str, *, threshold: float, as_json: bool) -> None:
    """Show where one run's time and money went."""
    with Api(target) as api:
        answer = api.call("GET", f"/v1/runs/{run_id}/profile", params={"threshold": str(threshold)})
    if as_json:
        print_json(answer)
        return
    screen, profile = console(), answer["profile"]
    wall = _milliseconds(profile["wall_ms"])
    screen.print(answer["run_id"], answer["name"], status_text(answer["status"]), wall)
    nodes = profile["nodes"]
    slowest = nodes[0]["node_id"] if nodes else None
    _highlights(screen, slowest, profile["bottlenecks"], profile["threshold"])
    rows = []
    for node in nodes:
        cells = (
            node["node_id"],
            node["kind"],
            node["name"],
            str(node["steps"]),
            str(node["attempts"]),
            _milliseconds(node["queue_wait_ms"]),
            _milliseconds(node["duration_ms"]),
            f"{node['share']:.0%}",
            f"${node['cost_usd']:.6f}",
        )
        style = _DEAREST if node["bottleneck"] else _SLOW if node["node_id"] == slowest else ""
        rows.append(tuple(Text(cell, style=style) for cell in cells))
    if rows:
        columns = ("node", "kind", "name", "steps", "attempts", "queue wait", "took", "share")
        screen.print(table((*columns, "cost"), rows))
    costs = [
        (line["provider"] or "(unknown)", line["model"], _usd(line["usage"]))
        for line in profile["models"]
    ]
    if costs:
        screen.print()
        screen.print(table(("provider", "model", "cost"), costs))


def _highlights(screen: Any, slowest: str | None, bottlenecks: list[str], threshold: float) -> None:
    if slowest is not None:
        screen.print(Text(f"slowest: {slowest}", style=_SLOW))
    if bottlenecks:
        names = ", ".join(bottlenecks)
        text = f"bottlenecks, above {threshold:.0%} of the time: {names}"
        screen.print(Text(text, style=_DEAREST))


def _usd(usage: dict[str, Any]) -> str:
    return f"${usage['cost_usd']:.6f}" + (" or more" if usage.get("unknown_price") else "")


def _milliseconds(value: float) -> str:
    return f"{value:.0f} ms" if value < 10_000 else f"{value / 1000:.1f} s"
