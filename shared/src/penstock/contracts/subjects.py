"""Names on the bus: the only module in which a subject, stream, consumer or bucket is spelled.

Everything else builds and takes apart names by the functions below.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

# Streams
RUNS: Final = "RUNS"
TIMERS: Final = "TIMERS"
DELTAS: Final = "DELTAS"
DEAD: Final = "DEAD"
CANARY: Final = "CANARY"

# Key-value buckets and the object store
PLANS: Final = "plans"
PUBLISHED: Final = "published"
RUNNERS: Final = "runners"
KEYS: Final = "keys"
SESSIONS: Final = "sessions"
LEASES: Final = "leases"
WEBHOOKS: Final = "webhooks"
SCHEDULES: Final = "schedules"
PENDING: Final = "pending"
TURNS: Final = "turns"
LIMITS: Final = "limits"
ARTIFACTS: Final = "artifacts"

# Subject spaces
RUN_SPACE: Final = "run.>"
LIVE_SPACE: Final = "live.run.>"
TIMER_SPACE: Final = "timer.>"
DELTA_SPACE: Final = "delta.>"
DEAD_SPACE: Final = "dead.>"
CANARY_SPACE: Final = "canary.>"
LIVE_PREFIX: Final = "live."

PROJECTOR: Final = "projector"

FactEvent = Literal["invoke", "result", "signal", "cancel", "step", "state", "end"]


class FactSubject(NamedTuple):
    """A fact's subject, taken apart.

    ``decision`` is 0 for inputs; ``step_id``, ``kind`` and ``queue`` are empty and ``attempt``
    is 0 where the event has none. ``signal_id`` stands in ``step_id`` for signals.
    """

    tenant: str
    shard: int
    run_id: str
    event: FactEvent
    decision: int = 0
    kind: str = ""
    queue: str = ""
    step_id: str = ""
    attempt: int = 0


def run_prefix(tenant: str, shard: int, run_id: str) -> str:
    """Return ``run.{tenant}.{shard}.{run}``, the stem of all subjects of a run."""
    return f"run.{tenant}.{shard}.{run_id}"


def run_filter(tenant: str, shard: int, run_id: str) -> str:
    """Return the filter that matches every fact of one run."""
    return f"run.{tenant}.{shard}.{run_id}.>"


def invoke(prefix: str) -> str:
    """Return the subject of the fact that asks for the run with this prefix."""
    return f"{prefix}.in.invoke"


def result(prefix: str, step_id: str, attempt: int) -> str:
    """Return the subject of a step's outcome."""
    return f"{prefix}.in.result.{step_id}.{attempt}"


def signal(prefix: str, signal_id: str) -> str:
    """Return the subject of a signal to a run."""
    return f"{prefix}.in.signal.{signal_id}"


def cancel(prefix: str) -> str:
    """Return the subject of the request to cancel a run."""
    return f"{prefix}.in.cancel"


def step_suffix(kind: str, queue: str, step_id: str, attempt: int) -> str:
    """Return what follows ``out.{n}.`` in the subject of a scheduled step."""
    return f"step.{kind}.{queue}.{step_id}.{attempt}"


STATE_SUFFIX: Final = "state"
END_SUFFIX: Final = "end"


def out(prefix: str, decision: int, suffix: str) -> str:
    """Return the subject of one message of decision ``decision``."""
    return f"{prefix}.out.{decision}.{suffix}"


def fence(prefix: str, decision: int) -> str:
    """Return the filter under which only one first message of a decision may exist."""
    return f"{prefix}.out.{decision}.>"


def decisions_filter(prefix: str) -> str:
    """Return the filter for all that was decided about a run."""
    return f"{prefix}.out.>"


def tenant_filter(tenant: str) -> str:
    """Return the filter that matches every fact of one tenant."""
    return f"run.{tenant}.>"


def ends_filter(prefix: str) -> str:
    """Return the filter for the facts that stop a run: its end."""
    return f"{prefix}.out.*.end"


def cancels_filter(shard: int) -> str:
    """Return the filter for the requests to cancel a run of a shard."""
    return f"run.*.{shard}.*.in.cancel"


def shard_ends_filter(shard: int) -> str:
    """Return the filter for the ends of all runs of a shard."""
    return f"run.*.{shard}.*.out.*.end"


def parse_suffix(suffix: str) -> tuple[str, str, str, int]:
    """Take apart a step suffix into kind, queue, step id and attempt.

    Raises:
        ValueError: It is not the suffix of a step.
    """
    parts = suffix.split(".")
    if len(parts) != 5 or parts[0] != "step":
        raise ValueError(f"not a step suffix: {suffix!r}")
    return parts[1], parts[2], parts[3], int(parts[4])


def parse_fact(subject: str) -> FactSubject:
    """Take apart the subject of a fact.

    Raises:
        ValueError: It is not the subject of a fact.
    """
    parts = subject.split(".")
    try:
        if parts[0] == "run":
            tenant, shard, run_id = parts[1], int(parts[2]), parts[3]
            if parts[4] == "in":
                event = parts[5]
                if event == "result":
                    return FactSubject(
                        tenant, shard, run_id, "result", step_id=parts[6], attempt=int(parts[7])
                    )
                if event == "invoke":
                    return FactSubject(tenant, shard, run_id, "invoke")
                if event == "cancel":
                    return FactSubject(tenant, shard, run_id, "cancel")
                if event == "signal":
                    return FactSubject(tenant, shard, run_id, "signal", step_id=parts[6])
            elif parts[4] == "out":
                decision, event = int(parts[5]), parts[6]
                if event == "step":
                    return FactSubject(
                        tenant,
                        shard,
                        run_id,
                        "step",
                        decision,
                        parts[7],
                        parts[8],
                        parts[9],
                        int(parts[10]),
                    )
                if event == "state":
                    return FactSubject(tenant, shard, run_id, "state", decision)
                if event == "end":
                    return FactSubject(tenant, shard, run_id, "end", decision)
    except (IndexError, ValueError) as error:
        raise ValueError(f"not the subject of a fact: {subject!r}") from error
    raise ValueError(f"not the subject of a fact: {subject!r}")


# Consumers


def engine_consumer(shard: int) -> str:
    """Return the durable that feeds the engine with the inputs of one shard."""
    return f"engine_{shard}"


def engine_filter(shard: int) -> str:
    """Return the filter of that durable."""
    return f"run.*.{shard}.*.in.>"


def timer_consumer(shard: int) -> str:
    """Return the durable that feeds the engine with the due timers of one shard."""
    return f"timers_{shard}"


def timer_due_filter(shard: int) -> str:
    """Return the filter of that durable."""
    return f"timer.due.*.{shard}.>"


def runner_consumer(kind: str, queue: str) -> str:
    """Return the durable that all replicas of a runner pool share."""
    return f"runner_{kind}_{queue}"


def runner_filter(kind: str, queue: str) -> str:
    """Return the filter of that durable."""
    return f"run.*.*.*.out.*.step.{kind}.{queue}.>"


def sink_consumer(name: str) -> str:
    """Return the durable by which a sink reads how runs end."""
    return f"sink_{name}"


# Live copies of facts (core NATS)


def live(subject_or_filter: str) -> str:
    """Return the subject under which the server republishes a fact as it is stored."""
    return f"{LIVE_PREFIX}{subject_or_filter}"


ENDS: Final = "run.*.*.*.out.*.end"
"""The end of every run."""
LIVE_ENDS: Final = "live.run.*.*.*.out.*.end"


# Timers


class TimerSubject(NamedTuple):
    """A due timer's subject, taken apart."""

    tenant: str
    shard: int
    run_id: str
    timer_id: str


def timer_set(tenant: str, shard: int, run_id: str, timer_id: str) -> str:
    """Return the subject on which a timer is set."""
    return f"timer.set.{tenant}.{shard}.{run_id}.{timer_id}"


def timer_due(tenant: str, shard: int, run_id: str, timer_id: str) -> str:
    """Return the subject on which the timer comes due."""
    return f"timer.due.{tenant}.{shard}.{run_id}.{timer_id}"


def timer_filter(tenant: str, shard: int, run_id: str) -> str:
    """Return the filter that matches all timers of one run, set and due."""
    return f"timer.*.{tenant}.{shard}.{run_id}.>"


def tenant_timer_filter(tenant: str) -> str:
    """Return the filter that matches all timers of one tenant, set and due."""
    return f"timer.*.{tenant}.>"


def parse_timer(subject: str) -> TimerSubject:
    """Take apart the subject of a due timer.

    Raises:
        ValueError: It is not one.
    """
    parts = subject.split(".")
    if len(parts) != 6 or parts[0] != "timer" or parts[1] != "due" or not parts[3].isdigit():
        raise ValueError(f"not the subject of a due timer: {subject!r}")
    return TimerSubject(parts[2], int(parts[3]), parts[4], parts[5])


# Deltas


def delta(tenant: str, shard: int, run_id: str, step_id: str, attempt: int) -> str:
    """Return the subject of the pieces of text that a step emits as it runs."""
    return f"delta.{tenant}.{shard}.{run_id}.{step_id}.{attempt}"


def delta_filter(tenant: str, shard: int, run_id: str) -> str:
    """Return the filter that matches all pieces of text of one run."""
    return f"delta.{tenant}.{shard}.{run_id}.>"


def tenant_delta_filter(tenant: str) -> str:
    """Return the filter that matches all pieces of text of one tenant's runs."""
    return f"delta.{tenant}.>"


def parse_delta(subject: str) -> tuple[str, int]:
    """Take apart a delta's subject into step id and attempt.

    Raises:
        ValueError: It is not one.
    """
    parts = subject.split(".")
    if len(parts) != 6 or parts[0] != "delta" or not parts[5].isdigit():
        raise ValueError(f"not the subject of a delta: {subject!r}")
    return parts[4], int(parts[5])


# Control (core NATS, best effort): steps of a run are to stop


def stop(tenant: str, shard: int, run_id: str) -> str:
    """Return the subject of requests to runners to stop work for a run."""
    return f"control.stop.{tenant}.{shard}.{run_id}"


STOP_SPACE: Final = "control.stop.>"


def parse_stop(subject: str) -> str:
    """Return the run id in a stop subject."""
    return subject.rsplit(".", 1)[1]


# Dead letters, canary


def dead(stream: str, consumer: str) -> str:
    """Return the subject of dead letters that a consumer of a stream gave up on."""
    return f"dead.{stream}.{consumer}"


def canary(instance: str) -> str:
    """Return the subject on which a process proves that it can append."""
    return f"canary.{instance}"


# Key-value keys


def published_key(tenant: str, name: str) -> str:
    """Return the key of a definition's version in force, in bucket ``published``."""
    return f"{tenant}.{name}"


def runner_key(kind: str, queue: str, runner_id: str) -> str:
    """Return the key of a live runner, in bucket ``runners``."""
    return f"{kind}.{queue}.{runner_id}"


def session_key(tenant: str, session_id: str) -> str:
    """Return the key of a session's latest run, in bucket ``sessions``."""
    return f"{tenant}.{session_id}"


def webhook_key(tenant: str, name: str) -> str:
    """Return the key of a webhook's configuration, in bucket ``webhooks``."""
    return f"{tenant}.{name}"


def published_version_key(tenant: str, name: str, selector: str) -> str:
    """Return the key of one version or alias of a definition, in bucket ``published``."""
    return f"{tenant}.{name}.{selector}"


def schedule_key(tenant: str, name: str) -> str:
    """Return the key of a schedule, in bucket ``schedules``."""
    return f"{tenant}.{name}"


def schedule_part_key(tenant: str, name: str, part: Literal["progress", "control"]) -> str:
    """Return the key of a value kept beside a schedule's own record, in bucket ``schedules``."""
    return f"{tenant}.{name}.{part}"


def pending_key(tenant: str, run_id: str, record_id: str) -> str:
    """Return the key of what a run asks of the world outside, in bucket ``pending``."""
    return f"{tenant}.{run_id}.{record_id}"


def correlation_key(tenant: str, correlation_hash: str, run_id: str) -> str:
    """Return the key by which an event finds a run, in bucket ``pending``."""
    return f"{tenant}.by_key.{correlation_hash}.{run_id}"


def bucket_stream(bucket: str) -> str:
    """Return the stream behind a bucket."""
    return f"KV_{bucket}"


def bucket_subject(bucket: str, key_or_filter: str) -> str:
    """Return the subject of a bucket's key, or a filter for several."""
    return f"$KV.{bucket}.{key_or_filter}"


def pending_filter(tenant: str, run_id: str = "*") -> str:
    """Return the filter of all that a run, or any run of the tenant, asks of the world outside."""
    return f"{tenant}.{run_id}.*"


def correlation_filter(tenant: str, correlation_hash: str) -> str:
    """Return the filter of the runs that events with a correlation key are for."""
    return f"{tenant}.by_key.{correlation_hash}.*"


def turn_key(tenant: str, key_hash: str) -> str:
    """Return the key of the runs that share a concurrency key, in bucket ``turns``."""
    return f"{tenant}.{key_hash}"


def limit_key(name_hash: str) -> str:
    """Return the key of a rate limit's state, in bucket ``limits``."""
    return f"rate.{name_hash}"


def block_key(name_hash: str) -> str:
    """Return the key of the time until which no runner calls a provider, in bucket ``limits``."""
    return f"block.{name_hash}"


BLOCK_FILTER: Final = "block.*"


def once_key(run_id: str, step_id: str, attempt: int) -> str:
    """Return the key by which an attempt that must not be repeated begins, in ``limits``."""
    return f"once.{run_id}.{step_id}.{attempt}"


def shard_lease_key(shard: int) -> str:
    """Return the key of an engine's lease on a shard, in bucket ``leases``."""
    return f"shard.{shard}"


def member_lease_key(instance: str) -> str:
    """Return the key by which an engine says that it lives, in bucket ``leases``."""
    return f"member.{instance}"


# Stored messages of buckets and objects, for those who remove them for good


def object_subjects(nuid: str, encoded_name: str) -> tuple[str, str]:
    """Return the subjects of an object's pieces and of its description."""
    return f"$O.{ARTIFACTS}.C.{nuid}", f"$O.{ARTIFACTS}.M.{encoded_name}"


# Request/reply


def rpc(service: Literal["registry", "archive", "engine"], verb: str) -> str:
    """Return the request subject of a service's verb."""
    return f"rpc.{service}.{verb}"
