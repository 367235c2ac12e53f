"""MLflow as a sink: each ended run becomes one MLflow run, over MLflow's REST API.

Exactly once: a run of ours is looked up by its tag before it is made, and everything that is sent
may be sent again: MLflow keeps one metric per name, time and value, and one parameter per name.
See https://mlflow.org/docs/latest/api_reference/rest-api.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import httpx
import msgspec

from penstock.contracts.errors import RejectedError, TransientError
from penstock.contracts.facts import RunEnded, RunInvoked, RunStatus
from penstock.contracts.json import Json
from penstock.contracts.usage import Usage
from penstock.runs.profiles import RunProfile, micros, profile_of_entries
from penstock.runs.state import Entry

RUN_TAG: Final = "penstock.run_id"
STATUS: Final[Mapping[RunStatus, str]] = {
    RunStatus.DONE: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.CANCELLED: "KILLED",
}
_ENDED: Final = frozenset(STATUS.values())
_METRICS_AT_ONCE: Final = 1000
_PARAMS_AT_ONCE: Final = 100
_TEXT: Final = 5000
_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_\-. /:]")
_MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"


class _Experiment(msgspec.Struct):
    experiment_id: str


class _Named(msgspec.Struct):
    experiment: _Experiment


class _RunInfo(msgspec.Struct):
    run_id: str
    status: str


class _Run(msgspec.Struct):
    info: _RunInfo


class _Created(msgspec.Struct):
    run: _Run


class _Found(msgspec.Struct):
    runs: list[_Run] = []


class _Empty(msgspec.Struct):
    """A reply without content that matters."""


ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)


class MlflowRun:
    """One ended run in MLflow's words."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Read a run's facts.

        Raises:
            RejectedError: ``run_incomplete``: its beginning or its end is not among them.
        """
        facts = [entry.fact for entry in entries]
        invoked = next((fact for fact in facts if isinstance(fact, RunInvoked)), None)
        ended = next((fact for fact in facts if isinstance(fact, RunEnded)), None)
        profile = profile_of_entries(entries)
        if invoked is None or ended is None or profile is None:
            raise RejectedError("run_incomplete", "the log has lost a part of the run")
        subject = entries[0].subject
        self.run_id = subject.run_id
        self.tenant = subject.tenant
        self.name = f"{invoked.name}-{subject.run_id[-6:]}"
        self.status = STATUS[ended.status]
        self.start_ms = micros(invoked.occurred_at) // 1000
        self.end_ms = micros(ended.occurred_at) // 1000
        self.params = {
            "name": invoked.name,
            "kind": invoked.kind.value,
            "version": str(invoked.version),
            "trigger": invoked.trigger.value,
            "plan_digest": invoked.plan_digest,
        }
        self.tags = {
            RUN_TAG: self.run_id,
            "penstock.tenant": self.tenant,
            "penstock.status": ended.status.value,
            "penstock.bottleneck_info": bottleneck_info(profile)[:_TEXT],
            "mlflow.source.name": f"penstock/{invoked.name}",
            "mlflow.source.type": "PROJECT",
        }
        if invoked.session_id is not None:
            self.tags["penstock.session_id"] = invoked.session_id
        if ended.error is not None:
            self.tags["penstock.error"] = ended.error.code
        unknown = [line.model for line in profile.models if line.usage.unknown_price]
        if unknown:
            self.tags["penstock.unknown_prices"] = ", ".join(unknown)[:_TEXT]
        for key, value in invoked.tags.items():
            self.tags[f"penstock.tag.{_name(key)}"] = value[:_TEXT]
        self.metrics = metrics_of(profile, ended.usage)


def bottleneck_info(profile: RunProfile) -> str:
    """Return the nodes above the threshold, and the slowest of all, as JSON."""
    return json.dumps(
        {
            "threshold": profile.threshold,
            "wall_ms": profile.wall_ms,
            "bottlenecks": [
                {"node_id": node.node_id, "duration_ms": node.duration_ms, "share": node.share}
                for node in profile.nodes
                if node.bottleneck
            ],
            "slowest": profile.nodes[0].node_id if profile.nodes else None,
        }
    )


def metrics_of(profile: RunProfile, usage: Usage) -> dict[str, float]:
    """Return a run's metrics by name."""
    metrics = {
        "wall_ms": profile.wall_ms,
        "queue_wait_ms": profile.queue_wait_ms,
        "cost_usd": usage.cost_usd,
        "input_tokens": float(usage.input_tokens),
        "output_tokens": float(usage.output_tokens),
        "model_calls": float(usage.model_calls),
        "bottlenecks": float(len(profile.bottlenecks)),
    }
    for line in profile.models:
        key = f"provider_{_name(line.provider or 'unknown')}_cost_usd"
        metrics[key] = metrics.get(key, 0.0) + line.usage.cost_usd
    for node in profile.nodes:
        name = _name(node.node_id)
        metrics[f"node_{name}_duration_ms"] = node.duration_ms
        metrics[f"node_{name}_queue_wait_ms"] = node.queue_wait_ms
        metrics[f"node_{name}_cost_usd"] = node.cost_usd
    return metrics


def _name(text: str) -> str:
    return _FOREIGN.sub("_", text)[:200]


class Mlflow:
    """A client of one MLflow server, writing into one experiment."""

    def __init__(
        self, url: str, experiment: str, *, token: str | None = None, timeout_seconds: float = 15.0
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Of the tracking server.
            experiment: Name of the experiment; made where there is none.
            token: Bearer token, where the server asks for one.
            timeout_seconds: Of each request.
        """
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            base_url=f"{url.rstrip('/')}/api/2.0/mlflow/", headers=headers, timeout=timeout_seconds
        )
        self._experiment = experiment
        self._experiment_id: str | None = None

    async def write(self, run: MlflowRun) -> bool:
        """Write a run unless it is there; return whether anything was to be done.

        Raises:
            TransientError: ``mlflow_unavailable``.
            RejectedError: ``mlflow_refused``.
        """
        known = await self._find(run.run_id)
        if known is not None and known.info.status in _ENDED:
            return False
        if known is None:
            created = await self._post(
                _Created,
                "runs/create",
                {
                    "experiment_id": await self._experiment_of(),
                    "run_name": run.name,
                    "start_time": run.start_ms,
                    "tags": _pairs({RUN_TAG: run.run_id}),
                },
            )
            known = created.run
        run_id = known.info.run_id
        metrics: list[Json] = [
            {"key": key, "value": value, "timestamp": run.end_ms, "step": 0}
            for key, value in run.metrics.items()
        ]
        tags, params = _pairs(run.tags), _pairs(run.params)
        for begin in range(0, max(len(tags), len(params), 1), _PARAMS_AT_ONCE):
            part = slice(begin, begin + _PARAMS_AT_ONCE)
            batch: dict[str, Json] = {"run_id": run_id, "tags": tags[part], "params": params[part]}
            await self._post(_Empty, "runs/log-batch", batch)
        for begin in range(0, len(metrics), _METRICS_AT_ONCE):
            some = metrics[begin : begin + _METRICS_AT_ONCE]
            await self._post(_Empty, "runs/log-batch", {"run_id": run_id, "metrics": some})
        # Last: a run whose status is final needs nothing more.
        end: dict[str, Json] = {"run_id": run_id, "status": run.status, "end_time": run.end_ms}
        await self._post(_Empty, "runs/update", end)
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _find(self, run_id: str) -> _Run | None:
        found = await self._post(
            _Found,
            "runs/search",
            {
                "experiment_ids": [await self._experiment_of()],
                "filter": f"tags.`{RUN_TAG}` = '{run_id}'",
                # A run that a user has deleted there must not come back.
                "run_view_type": "ALL",
                "max_results": 1,
            },
        )
        return found.runs[0] if found.runs else None

    async def _experiment_of(self) -> str:
        if self._experiment_id is None:
            try:
                params = {"experiment_name": self._experiment}
                named = await self._call(_Named, "GET", "experiments/get-by-name", params=params)
                self._experiment_id = named.experiment.experiment_id
            except RejectedError as error:
                if _MISSING not in error.message:
                    raise
                self._experiment_id = await self._create_experiment()
        return self._experiment_id

    async def _create_experiment(self) -> str:
        try:
            made = await self._post(_Experiment, "experiments/create", {"name": self._experiment})
        except RejectedError as error:
            if _EXISTS not in error.message:
                raise
            raise TransientError("mlflow_unavailable", error.message) from error
        return made.experiment_id

    async def _post(self, reply: type[ReplyT], path: str, body: Mapping[str, Json]) -> ReplyT:
        return await self._call(reply, "POST", path, body=body)

    async def _call(
        self,
        reply: type[ReplyT],
        method: str,
        path: str,
        *,
        body: Mapping[str, Json] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> ReplyT:
        try:
            response = await self._client.request(method, path, json=body, params=params)
        except httpx.TransportError as error:
            raise TransientError("mlflow_unavailable", f"{path}: {error!r}") from error
        if response.status_code == 429 or response.status_code >= 500:
            raise TransientError(
                "mlflow_unavailable", f"{path}: {response.status_code} {response.text[:300]}"
            )
        if response.is_error:
            raise RejectedError(
                "mlflow_refused", f"{path}: {response.status_code} {response.text[:1000]}"
            )
        try:
            return msgspec.json.decode(response.content or b"{}", type=reply)
        except msgspec.DecodeError as error:
            raise RejectedError(
                "mlflow_refused", f"{path}: the reply is not MLflow's: {error}"
            ) from error


def _pairs(values: Mapping[str, str]) -> list[Json]:
    return [{"key": key, "value": value} for key, value in values.items()]
