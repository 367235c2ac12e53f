"""Settings of the orchestrator."""

from __future__ import annotations

from pydantic import Field

from penstock.settings import CoreSettings


class OrchestratorSettings(CoreSettings):
    """Settings of the engine."""

    engine_concurrency: int = Field(
        default=512,
        ge=1,
        description="Inputs handled at a time per shard. 512: enough to fill a group commit, few "
        "enough to drain within seconds.",
    )
    reconcile_seconds: float = Field(
        default=60.0,
        gt=0,
        description="A run without input for this long is read again from the log, at most 16 runs "
        "per second. 60: a lost wake-up costs a minute while fewer than 1,000 runs are idle; the "
        "cost stays bounded with more.",
    )
    log_keep_days: float = Field(
        default=7.0,
        gt=0,
        description="Days after its end when a run is deleted from the log, if the archive has it. "
        "Open runs stay however old they are. 7: an idempotency key has effect for a week.",
    )
    window_factor: float = Field(
        default=2.0,
        gt=1.0,
        description="Steps of a runner pool that one engine has out at a time, as a multiple of "
        "the slots of its live runners (512 at least, 64 for agents). Further steps wait in the "
        "engine by priority and tenant. 2: runners find their next step when one is done, and a "
        "long queue of one tenant does not stand before another's.",
    )
    run_max_work: int = Field(
        default=300_000_000,
        ge=1,
        description="Work that the expressions of one run may cost, in units (an element touched, "
        "16 characters of text); beyond it the run fails as `work_exhausted`. 300,000,000: about "
        "100 seconds of a core; more is work for a tool.",
    )
