"""``penstock runs fold`` and ``runs tail --subject``: the log itself, read from the bus."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, Final

from nats.aio.msg import Msg
from rich.console import Console
from rich.text import Text

from penstock.cli.display import compact, console, print_json, status_text
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.wire import Wire, on_wire
from penstock.contracts import subjects
from penstock.contracts.ids import is_run_id, shard_of
from penstock.contracts.structs import plain
from penstock.runs.endings import at_end
from penstock.runs.state import Entry, RunState, StepState, evolve, new_state
from penstock.runs.views import RUN_VIEW, run_view
from penstock.target import Target

FACT_STYLE: Final = {
    "invoke": "bold magenta",
    "result": "green",
    "signal": "magenta",
    "cancel": "yellow",
    "step": "cyan",
    "state": "yellow",
    "end": "bold",
}


def fold_run(target: Target, run_id: str, *, until_seq: int | None, as_json: bool) -> None:
    """Fold a run's facts in order and show each with the state that it leads to.

    Raises:
        CommandError: The log knows no such run, or cannot be read.
    """
    run_id = run_id.upper()
    if not is_run_id(run_id):
        raise CommandError(f"{run_id} is not the id of a run", exit_code=MISUSED)

    async def work(wire: Wire) -> tuple[RunState, list[Entry]]:
        shard = shard_of(run_id, wire.settings.shards)
        entries = await wire.reader.read_run(target.tenant, shard, run_id)
        return new_state(target.tenant, shard, run_id), entries

    state, entries = on_wire(target, work)
    if not entries:
        raise CommandError(
            f"the log holds no run {run_id} of tenant {target.tenant}", exit_code=MISUSED
        )
    screen = console()
    started = latest = entries[0].fact.occurred_at
    for entry in entries:
        if until_seq is not None and entry.seq > until_seq:
            break
        before, state = state, evolve(state, entry)
        if as_json:
            print_json(frame(entry, state), pretty=False)
        else:
            # Facts are in the order of the log; the clocks of two processes differ a little.
            latest = max(latest, entry.fact.occurred_at)
            _show_fact(screen, entry, (latest - started).total_seconds())
            _show_change(screen, before, state)
    if until_seq is not None and not as_json:
        view = run_view(state)
        screen.print()
        print_json(None if view is None else RUN_VIEW.dump_python(view, mode="json"))


def frame(entry: Entry, state: RunState) -> dict[str, Any]:
    """Return one step of a fold as data."""
    return {
        "seq": entry.seq,
        "subject": {name: value for name, value in entry.subject._asdict().items() if value},
        "fact": plain(entry.fact),
        "state": {
            "status": state.status.value,
            "decisions": state.decisions,
            "steps": {
                step.step_id: {"status": step.status, "attempt": step.attempt}
                for step in _in_order(at_end(state).steps.values())
            },
        },
    }


def _show_fact(screen: Console, entry: Entry, passed: float) -> None:
    subject, fact = entry.subject, entry.fact
    line = Text()
    line.append(f"{entry.seq:>8} ", style="dim")
    line.append(f"{passed:>8.3f} ", style="dim")
    place = f"out.{subject.decision}." if subject.decision else "in."
    line.append(f"{place + subject.event:<14}", style=FACT_STYLE.get(subject.event, ""))
    if subject.step_id:
        line.append(f" {subject.step_id}")
        line.append(f"#{subject.attempt}" if subject.attempt else "", style="dim")
    body = plain(fact, defaults=False)
    shown = {
        name: body[name]
        for name in ("name", "status", "input", "output", "error", "waits", "reason", "payload")
        if name in body
    }
    line.append(f"  {compact(shown, 160)}", style="dim")
    screen.print(line)


def _show_change(screen: Console, before: RunState, after: RunState) -> None:
    before, after = at_end(before), at_end(after)
    line = Text(f"{'':>18}└ ", style="dim")
    line.append_text(status_text(after.status.value))
    line.append(f"  decisions {after.decisions}", style="dim")
    for step in _in_order(after.steps.values()):
        known = before.steps.get(step.step_id)
        changed = known is None or (known.status, known.attempt) != (step.status, step.attempt)
        line.append("  ")
        line.append(step.step_id, style="bold" if changed else "dim")
        line.append("=", style="dim")
        if changed:
            line.append_text(status_text(step.status))
        else:
            line.append(step.status, style="dim")
    screen.print(line)


def _in_order(steps: Iterable[StepState]) -> list[StepState]:
    return sorted(steps, key=lambda step: (step.decision, step.step_id))


def tail_subject(target: Target, pattern: str, *, limit: int | None, as_json: bool) -> None:
    """Print facts (or deltas, timers, dead letters) that match a subject, as they are stored.

    Args:
        target: Where the bus is.
        pattern: NATS wildcards; ``run.`` is read from the live copies of the log.
        limit: Stop after so many messages.
        as_json: Print ``{"subject", "seq", "body"}``, one per line.

    Raises:
        CommandError: The pattern is no subject, or the bus cannot be reached.
    """
    if not pattern or " " in pattern or ".." in pattern or pattern.strip(".") != pattern:
        raise CommandError(f"{pattern!r} is not a subject", exit_code=MISUSED)
    live = pattern == ">" or pattern.split(".", maxsplit=1)[0] == "run"
    source = subjects.live("run.>" if pattern == ">" else pattern) if live else pattern
    screen = console()

    async def work(wire: Wire) -> None:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        await wire.bus.subscribe(source, arrived.put)
        await wire.bus.nc.flush()
        seen = 0
        while limit is None or seen < limit:
            _show_message(screen, await arrived.get(), as_json=as_json)
            seen += 1

    on_wire(target, work)


def _show_message(screen: Console, message: Msg, *, as_json: bool) -> None:
    subject = message.subject.removeprefix(subjects.LIVE_PREFIX)
    seq = (message.headers or {}).get("Nats-Sequence", "")
    text = message.data.decode("utf-8", "replace")
    if as_json:
        try:
            body = json.loads(text)
        except ValueError:
            body = text
        print_json({"subject": subject, "seq": int(seq or 0), "body": body}, pretty=False)
        return
    line = Text()
    line.append(f"{seq:>8} ", style="dim")
    line.append_text(coloured_subject(subject))
    line.append(f"  {compact(text, 300)}", style="dim")
    screen.print(line)


def coloured_subject(subject: str) -> Text:
    """Return a subject with its run pale and its event in colour."""
    parts = subject.split(".")
    if len(parts) < 5 or parts[0] != "run":
        return Text(subject)
    text = Text(".".join(parts[:4]) + ".", style="dim")
    event = parts[5] if parts[4] == "in" else parts[6] if len(parts) > 6 else ""
    text.append(".".join(parts[4:]), style=FACT_STYLE.get(event, ""))
    return text
