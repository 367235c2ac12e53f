"""Requests to the archive for usage, costs and profiles, and its replies."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from penstock.contracts.facts import Record, RunStatus
from penstock.contracts.ids import Token
from penstock.contracts.usage import Usage
from penstock.runs.profiles import THRESHOLD, ModelCost, RunProfile


class UsageSummary(Record):
    """Verb ``usage_summary``: what model calls cost, by provider and model."""

    tenant: Token
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    """Not included."""
    name: str | None = None
    """Of one agent only."""


class UsageReport(Record):
    """What model calls cost, the dearest first, and all together."""

    items: tuple[ModelCost, ...]
    total: Usage


class CostReport(Record):
    """Verb ``cost_report``: what model calls cost, by provider, by model, by agent and by day."""

    tenant: Token
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    """Not included."""
    name: str | None = None
    """Of one agent only."""


class CostLine(Record):
    """One group of calls."""

    key: str
    """The provider, model, agent or day (UTC); empty where that is not known."""
    usage: Usage
    share: float
    """Of the whole cost, 0 to 1."""


class CostReportView(Record):
    """What model calls cost, grouped in four ways, the dearest first (days: the latest first)."""

    total: Usage
    runs: int
    """Runs with at least one call."""
    providers: tuple[CostLine, ...] = ()
    models: tuple[CostLine, ...] = ()
    agents: tuple[CostLine, ...] = ()
    days: tuple[CostLine, ...] = ()
    most_expensive_provider: str | None = None
    unknown_prices: tuple[str, ...] = ()
    """Models with calls of unknown price: what they cost is missing from the sums."""


class ProfileReport(Record):
    """Verb ``profile_report``: where ended runs spent their time, the latest ``runs`` of them."""

    tenant: Token
    name: str | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    threshold: float = Field(default=THRESHOLD, ge=0, le=1)
    runs: int = Field(default=200, ge=1, le=1000)


class NodeReport(Record):
    """One node of one agent or workflow, over all runs in the report."""

    name: str
    """The agent or workflow whose run it was."""
    node_id: str
    runs: int
    mean_ms: float
    longest_ms: float
    mean_wait_ms: float
    """From scheduled to started, per run."""
    mean_share: float
    """Of its run's wall time."""
    cost_usd: float
    bottleneck_in: int
    """Runs in which its share was strictly above the threshold."""


class ProfileReportView(Record):
    """Where ended runs spent their time; nodes by mean duration, longest first."""

    runs: int
    threshold: float
    mean_wall_ms: float
    nodes: tuple[NodeReport, ...] = ()
    slowest: str | None = None
    """``name/node_id`` of the node with the longest mean duration."""
    bottlenecks: tuple[str, ...] = ()
    """``name/node_id`` of nodes whose mean share is strictly above the threshold."""


class GetProfile(Record):
    """Verb ``get_profile``: the profile that was stored when a run ended.

    Refused as ``run_not_found``, also while the run is under way.
    """

    tenant: Token
    run_id: str


class ProfileOfRun(Record):
    """Where one run's time and money went."""

    run_id: str
    name: str
    status: RunStatus
    profile: RunProfile
