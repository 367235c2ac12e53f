"""The verdict over a whole installation after chaos: assertions, and figures for the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.archive import Archive, differences, folded, missing_facts
from tests.chaos.blows import Struck, settle_hands
from tests.chaos.crowd import Accepted, Transcript
from tests.chaos.figures import Figures, spread, table
from tests.chaos.rig import ACK_WAIT_SECONDS, CHILD, EFFECTS, PARENT, RECOVERY_GOAL_SECONDS, Rig
from tests.chaos.verdict import (
    Havoc,
    Repetitions,
    decoded,
    event_ids,
    explain,
    failed_attempts,
    faults_of_run,
    read_ledger,
    read_log,
    succeeded_keys,
)
from tests.chaos.witness import Witness
from tests.support.waiting import eventually


@dataclass
class Judgement:
    """What was found; empty is good."""

    lost: list[str] = field(default_factory=list)
    """Accepted runs without an end."""
    faults: dict[str, list[str]] = field(default_factory=dict)
    transcripts: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    """Where a follower was told something else than the log says."""
    archive: dict[str, list[str]] = field(default_factory=dict)
    not_archived: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    repetitions: Repetitions = field(default_factory=Repetitions)
    facts: int = 0

    @property
    def duplicated(self) -> int:
        """Outcomes, ends or decisions that are there twice."""
        words = (" ends", " invokes", " outcomes", " times")
        return sum(any(w in fault for w in words) for f in self.faults.values() for fault in f)

    def require_clean(self) -> None:
        """Assert that nothing was found.

        Raises:
            AssertionError: With the first few of each kind.
        """
        wrong: dict[str, list[Any]] = {
            "lost": self.lost,
            "faults": list(self.faults.items()),
            "told otherwise": list(self.transcripts.items()),
            "without effect": self.without_effect,
            "unexplained": self.repetitions.unexplained,
            "facts not archived": self.not_archived,
            "rows unlike the fold": list(self.archive.items()),
        }
        told = {what: [len(found), *found[:3]] for what, found in wrong.items() if found}
        assert not told, told  # with its text: pytest explains only what stands in a test


async def judge(
    rig: Rig,
    accepted: Sequence[Accepted],
    transcripts: Sequence[Transcript],
    havoc: Havoc,
    archive: Archive,
) -> Judgement:
    """Read the log, the ledger and the archive, and compare all three."""
    found = Judgement()
    log = await read_log(rig.settings)
    found.facts = sum(len(messages) for messages in log.values())
    last = max(messages[-1].seq for messages in log.values())

    async def caught_up() -> bool:
        return await archive.position() >= last

    await eventually(caught_up, within=120, every=0.2)
    found.not_archived = missing_facts(await archive.facts(), log)
    rows, steps = await archive.runs(), await archive.steps()
    told = {transcript.run_id: transcript.ids for transcript in transcripts}
    found.lost = [run.run_id for run in accepted if run.run_id not in log]
    failed: set[tuple[str, int]] = set()
    succeeded: set[str] = set()
    names: Counter[str] = Counter()
    async for run_id, entries in decoded(rig.settings, log):
        names[folded(entries).request.name] += 1
        if faults := faults_of_run(entries):
            found.faults[run_id] = faults
            if "0 ends" in faults:
                found.lost.append(run_id)
        if run_id in told and told[run_id] != (ids := event_ids(entries)):
            found.transcripts[run_id] = (told[run_id], ids)
        failed |= failed_attempts(run_id, entries)
        succeeded |= succeeded_keys(run_id, entries, "effect")
        if wrong := differences(folded(entries), rows.get(run_id), steps):
            found.archive[run_id] = wrong
    ledger = read_ledger(rig.ledger)
    found.without_effect = sorted(succeeded - {effect.key for effect in ledger.effects})
    found.repetitions = explain(ledger, havoc, failed, ACK_WAIT_SECONDS)
    expected = sum(EFFECTS[name] * count for name, count in names.items())
    assert len(succeeded) == expected, f"{len(succeeded)} steps with an effect, not {expected}"
    assert names[CHILD] == names[PARENT], f"not every parent has one child: {names}"
    return found


def report(
    figures: Figures,
    test: str,
    found: Judgement,
    struck: Sequence[Struck],
    witness: Witness,
    rig: Rig,
    span: tuple[float, float],
) -> None:
    """Add what was found to the table of figures.

    Args:
        figures: The table.
        test: What the lines are about.
        found: The verdict.
        struck: All blows.
        witness: Who saw the log grow.
        rig: Where the ledger is.
        span: Unix times of the first blow and of the recovery from the last.
    """
    settle_hands(struck, read_ledger(rig.ledger), witness.facts)
    seconds = span[1] - span[0]
    ended = sum(span[0] <= at <= span[1] for at in witness.ended.values())
    again = found.repetitions
    recoveries = [blow.seconds for blow in struck]
    hands = [blow.in_hand_seconds for blow in struck if blow.in_hand]
    kinds = Counter(blow.blow.kind for blow in struck)
    figures.add(
        test,
        "runs / child runs / facts in the log",
        f"{len(witness.ended)} / {len(witness.children)} / {found.facts}",
    )
    dealt = " / ".join(str(kinds[kind]) for kind in ("kill", "stop", "isolate"))
    figures.add(test, "blows: kill -9 / stop / isolate", dealt)
    figures.add(test, "lost / duplicated", f"{len(found.lost)} / {found.duplicated}")
    figures.add(test, "recovery p50 / p99 / max", spread(recoveries))
    over = sum(seconds > RECOVERY_GOAL_SECONDS for seconds in recoveries)
    figures.add(test, f"recoveries over {RECOVERY_GOAL_SECONDS:.0f} s", over)
    figures.add(test, "steps in hand done after p50 / p99 / max", spread(hands))
    figures.add(test, "runs/s during the blows", f"{ended / seconds:.1f} over {seconds:.0f} s")
    figures.add(
        test,
        "effects had again: bus, blow, stall, failure",
        f"{again.by_bus}, {again.by_blow}, {again.by_stall}, {again.by_failure}",
    )
    figures.details += ["", f"blows of {test}", *blow_table(struck, span[0])]


def blow_table(struck: Sequence[Struck], began: float) -> list[str]:
    """Return every blow with its recovery."""
    head = ("at", "blow", "moves again after", "steps in hand", "done after")
    return table(
        head,
        [
            (
                f"{blow.at - began:.1f} s",
                str(blow.blow),
                f"{blow.seconds:.1f} s",
                str(blow.in_hand or "-"),
                f"{blow.in_hand_seconds:.1f} s" if blow.in_hand else "-",
            )
            for blow in struck
        ],
    )
