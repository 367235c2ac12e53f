"""``penstock sink``: processes that tell other systems how runs end."""

from __future__ import annotations

import asyncio
import os

from penstock.settings import CoreSettings
from penstock.sinks.process import run_mlflow_sink
from penstock.target import Target
from penstock.telemetry import logs


def run_mlflow(
    target: Target, *, url: str, experiment: str, name: str, only_tenant: str | None
) -> None:
    """Write ended runs to MLflow until Ctrl-C."""
    settings = CoreSettings(nats_url=target.nats_url, data_dir=target.data_dir)
    logs.configure(
        service=f"sink-{name}",
        instance_id=settings.instance_id,
        level=settings.log_level,
        style=settings.log_format,
    )
    asyncio.run(
        run_mlflow_sink(
            settings,
            url=url,
            experiment=experiment,
            name=name,
            token=os.environ.get("MLFLOW_TRACKING_TOKEN"),
            only_tenant=only_tenant,
        )
    )
